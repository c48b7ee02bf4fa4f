//! One file per subcommand: `Args` and `run`.

pub mod apply;
pub mod backup;
pub mod check;
pub mod delete;
pub mod describe;
pub mod down;
pub mod exec;
pub mod get;
pub mod image;
pub mod logs;
pub mod node;
pub mod restore;
pub mod status;
pub mod up;
pub mod user;
pub mod vm;
pub mod wait;
