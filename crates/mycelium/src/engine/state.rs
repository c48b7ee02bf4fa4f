//! The state file of an engine, and the key that opens the Secrets in it.

use std::path::Path;

use anyhow::Result;
use mycelium_apiserver::sealing::Sealer;
use mycelium_store::{Options, Seals, Store};

/// The state in a data directory.
pub const FILE: &str = "state";
/// The key beside it.
pub const KEY: &str = "secrets.key";

/// Opens the state in a folder, or makes one.
pub fn open(folder: &Path) -> Result<Store> {
    let sealer = Sealer::load_or_create(&folder.join(KEY))?;
    let options = Options { seals: Seals::new(sealer), ..Options::default() };
    Ok(Store::open_file(&folder.join(FILE), options)?)
}
