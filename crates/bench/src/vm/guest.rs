//! The guests that are measured: one small program on a kernel, and Debian's PostgreSQL.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::lab::{CLIENT, GUEST, Lab, VM, address, run};
use crate::engine::command;

/// What a measured machine is.
pub struct Guest {
    kernel: String,
    initrd: String,
    /// Flags of `vm run` beyond those that every guest has.
    flags: Vec<String>,
    append: String,
}

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("mycelium")
}

fn kernel() -> Result<String> {
    let kernel = cache().join("guest-kernel/vmlinuz");
    ensure!(kernel.exists(), "{} is missing: run scripts/setup.sh vm", kernel.display());
    Ok(kernel.to_string_lossy().into_owned())
}

impl Guest {
    /// 256 MiB; `load` and the time between packets as `guests/beacon.rs` takes them.
    pub fn beacon(lab: &Lab, load: &str, every_us: u32) -> Result<Self> {
        let (program, initrd) = (lab.folder().join("beacon"), lab.folder().join("initrd"));
        if !initrd.exists() {
            let mut compile = command("rustc");
            compile.args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-o"]).arg(&program);
            run(compile.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/guests/beacon.rs")))?;
            run(command("bash").arg(repository().join("scripts/vm/guest-numbers.sh")).arg(&initrd).arg(&program))?;
        }
        Ok(Self {
            kernel: kernel()?,
            initrd: initrd.to_string_lossy().into_owned(),
            flags: vec!["--memory".into(), "256Mi".into()],
            append: format!(
                "console=ttyS0 quiet guest.ip={GUEST}/24 beacon.to={CLIENT}:7777 beacon.us={every_us} beacon.load={load}"
            ),
        })
    }

    /// Debian's PostgreSQL, in 256 MiB.
    pub fn postgres() -> Result<Self> {
        run(command("bash").arg(repository().join("scripts/vm/guest-postgres.sh")))?;
        let file = |name: &str| cache().join("guests/postgres").join(name).to_string_lossy().into_owned();
        let words = ["--disk", &file("disk.raw"), "--disk-size", "1Gi", "--memory", "256Mi"];
        Ok(Self {
            kernel: kernel()?,
            initrd: file("initrd"),
            flags: words.map(str::to_owned).to_vec(),
            append: format!("console=ttyS0 quiet guest.ip={GUEST}/24"),
        })
    }

    /// Starts it on host `a` with these backups, with epochs of so many milliseconds at least and at most.
    pub fn start(&self, lab: &mut Lab, backups: &[&str], epoch: (u32, u32)) -> Result<u32> {
        self.start_with(lab, backups, epoch, "auto", &[])
    }

    /// The same with a way to pack pages, and more flags of `vm run`.
    pub fn start_with(
        &self,
        lab: &mut Lab,
        backups: &[&str],
        (least, most): (u32, u32),
        compression: &str,
        more: &[&str],
    ) -> Result<u32> {
        let host = "a";
        let document = lab.folder().join("vm.yaml");
        let text = format!(
            "apiVersion: mycelium.network/v1\nkind: EndophyteVM\nmetadata: {{name: {VM}}}\nspec:\n  distributedRAM:\n    epochMilliseconds: {{minimum: {least}, maximum: {most}}}\n    compression: {compression}\n"
        );
        std::fs::write(&document, text)?;
        let (document, listen) = (document.to_string_lossy().into_owned(), format!("{}:7400", address(host)));
        let backups: Vec<String> = backups.iter().map(|name| format!("{}:7400", address(name))).collect();
        let mut words = vec!["run", "-f", &document, "--kernel", &self.kernel, "--initrd", &self.initrd];
        words.extend(["--append", &self.append, "--net", "tap:br0", "--listen", &listen]);
        words.extend(self.flags.iter().map(String::as_str));
        words.extend(backups.iter().flat_map(|backup| ["--backup", backup]));
        words.extend(more);
        lab.start(host, &words)
    }

    /// The arguments of a QEMU that boots it without us: the same board and devices.
    pub fn qemu_arguments(&self) -> Vec<String> {
        let words = ["-kernel", &self.kernel, "-initrd", &self.initrd, "-append", &self.append];
        words.map(str::to_owned).to_vec()
    }
}
