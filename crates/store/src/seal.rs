//! Values that are not to lie on the disk as they are.
//!
//! The store knows neither which those are nor how they are sealed: it asks. In memory, values are open.

use std::fmt;
use std::sync::Arc;

/// Seals values on their way to the disk and opens them on the way back.
pub trait Seal: Send + Sync {
    /// The sealed form of a value; none if it is written as it is.
    fn seal(&self, key: &str, value: &[u8]) -> Option<Vec<u8>>;
    /// The value in a sealed form; none if it is not sealed. Fails if it was sealed with another key, or altered.
    fn open(&self, key: &str, stored: &[u8]) -> Result<Option<Vec<u8>>, String>;
}

/// How the values of one store are sealed, if they are.
#[derive(Clone, Default)]
pub struct Seals(Option<Arc<dyn Seal>>);

impl Seals {
    /// Seals with this.
    pub fn new(seal: impl Seal + 'static) -> Self {
        Self(Some(Arc::new(seal)))
    }

    pub(crate) fn seal(&self, key: &str, value: &[u8]) -> Option<Vec<u8>> {
        self.0.as_ref().and_then(|seal| seal.seal(key, value))
    }

    pub(crate) fn open(&self, key: &str, stored: &[u8]) -> Result<Option<Vec<u8>>, String> {
        self.0.as_ref().map_or(Ok(None), |seal| seal.open(key, stored))
    }
}

impl fmt::Debug for Seals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Seals(some)" } else { "Seals(none)" })
    }
}
