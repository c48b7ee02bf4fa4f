//! The block server: NBD on a unix socket, one thread per connection.

pub mod proto;

mod connection;
mod pool;
mod server;

pub use server::BlockServer;
