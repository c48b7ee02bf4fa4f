//! The shim: one small process per pod that holds its sandbox, makes its containers and reaps them.
//!
//! It is a re-exec of the engine's binary with one thread, for the container runtime library needs that. It lives in a
//! session and a mount namespace of its own and depends on the engine for nothing: when the engine goes, containers
//! run on, their output is logged, their ends are recorded on disk, and the next engine connects to the same socket.
//! Everything it mounts is seen only in its namespace, so that nothing is left on the machine when it has gone.
//!
//! ```text
//!  engine --spawn--> [make sandbox] --> [poll loop] --Shutdown--> [kill, unmount, remove cgroups, exit]
//!                                        ^  requests on the control socket
//!                                        |  SIGCHLD: reap, record, tell the watchers
//!                                        +- output of containers: log, copy to those attached
//! ```

mod clock;
mod container;
mod exec;
pub mod log;
mod program;
pub mod protocol;
mod sandbox;
mod serve;
pub mod wire;

pub use clock::{now, rfc3339_nanos};
pub use container::{connect, listen};
pub use program::DEFAULT_PATH;

use std::ffi::OsString;
use std::path::PathBuf;

/// Runs the shim of the pod whose folder is the first argument, with the listening control socket as standard input.
/// Returns the process's exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> i32 {
    let Some(dir) = args.into_iter().next().map(PathBuf::from) else {
        eprintln!("the shim is started by the engine, with the folder of a pod");
        return 2;
    };
    match serve::run(&dir) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    }
}
