//! `mycelium`: one binary that runs Kubernetes workloads on a single machine. Command line and composition, nothing else.
//!
//! | folder | holds |
//! |---|---|
//! | `cli.rs` | the subcommands and exit codes |
//! | `commands/` | one file per subcommand |
//! | `client/` | what the commands that talk to an API server share |
//! | `engine/` | how the engine is put together and kept running |

mod cli;
mod client;
mod commands;
mod engine;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mycelium_linux::allocator::Allocator = mycelium_linux::allocator::Allocator;

fn main() -> ExitCode {
    // The shim must stay single-threaded: it is told apart before any runtime starts.
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|verb| verb == "shim") {
        let code = mycelium_node::shim::main(arguments);
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    cli::main()
}
