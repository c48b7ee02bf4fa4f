//! Which pages of its RAM a guest has written.

use std::ops::Range;

use mycelium_linux::userfault::{PageScanner, Userfault, mapping_of};

use super::error::{MachineError, Result};
use super::memory::PAGE;
use super::qemu::Machine;

/// Tracks the writes of one machine, its own and those of its devices.
#[derive(Debug)]
pub(super) struct DirtyTracker {
    userfault: Userfault,
    scanner: PageScanner,
    range: Range<u64>,
}

impl DirtyTracker {
    /// Takes the machine's userfaultfd. At first all pages count as written.
    pub(super) fn new(machine: &mut Machine) -> Result<DirtyTracker> {
        let tracking = MachineError::system("tracking the guest's writes");
        let mut set_up = || {
            let descriptor =
                machine.userfault.take().ok_or_else(|| std::io::Error::other("this machine is tracked already"))?;
            let userfault = Userfault::new(descriptor)?;
            let range = mapping_of(machine.pid(), machine.memory.file())?;
            userfault.register(&range)?;
            Ok(DirtyTracker { userfault, scanner: PageScanner::new(machine.pid())?, range })
        };
        set_up().map_err(tracking)
    }

    /// The pages written since they were last taken, ascending. From page `from` on and at most `limit` of them (0: all); also says
    /// where to go on, `None` when the end was reached.
    pub(super) fn take(&mut self, from: u64, limit: u64) -> Result<(Vec<u64>, Option<u64>)> {
        let (base, page) = (self.range.start, PAGE as u64);
        let mut pages = Vec::new();
        let next = self
            .scanner
            .take_written(base + from * page..self.range.end, limit, |found| {
                pages.extend((found.start - base) / page..(found.end - base) / page);
            })
            .map_err(MachineError::system("looking for written pages"))?;
        Ok((pages, (next < self.range.end).then(|| (next - base) / page)))
    }

    /// All pages count as written again.
    pub(super) fn forget(&mut self) -> Result<()> {
        self.userfault.forget(&self.range).map_err(MachineError::system("starting to track anew"))
    }
}
