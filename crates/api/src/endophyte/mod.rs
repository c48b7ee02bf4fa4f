//! `EndophyteVM`: a virtual machine that survives the loss of its host.

mod network;

pub use network::{Attachment, AttachmentError, Mac, MacError};
