//! The shim as a program of its own, for this crate's tests; the product runs it from its one binary.

fn main() {
    std::process::exit(mycelium_node::shim::main(std::env::args_os().skip(2)));
}
