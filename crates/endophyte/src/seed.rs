//! The first-boot configuration of a guest: a small FAT image labelled `CIDATA` that cloud-init reads as its NoCloud
//! source.
//!
//! `osConfig.customization` may be user data of any kind that cloud-init knows (it starts with `#cloud-config`, `#!`,
//! `## template:`, `Content-Type:` or another `#` header) and is then handed over as it is. Anything else, such as the
//! name of a customization, becomes a cloud-config that sets the host's name and leaves the text in
//! `/etc/mycelium/customization`, where an image's own scripts find it.

use std::io::{self, Cursor, Write};
use std::path::Path;

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};

/// The smallest image; FAT needs some room for itself.
const IMAGE_MIN: usize = 512 * 1024;

/// What a guest is told at its first boot.
#[derive(Clone, Debug, Default)]
pub struct Seed {
    /// The VM's name: its host name too.
    pub name: String,
    /// `osConfig.customization`.
    pub customization: Option<String>,
    /// Public keys for the default user.
    pub ssh_keys: Vec<String>,
    /// A network configuration, version 1 or 2, as YAML.
    pub network: Option<String>,
}

impl Seed {
    /// Writes the image to `path`, which appears whole or not at all. Equal seeds are equal images.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let part = path.with_extension("part");
        let written = std::fs::write(&part, self.image()?).and_then(|()| std::fs::rename(&part, path));
        written.inspect_err(|_| drop(std::fs::remove_file(&part)))
    }

    /// The image's bytes.
    pub fn image(&self) -> io::Result<Vec<u8>> {
        let mut files = vec![("meta-data", self.meta_data()), ("user-data", self.user_data())];
        files.extend(self.network.clone().map(|network| ("network-config", network)));
        let content: usize = files.iter().map(|(_, text)| text.len() + 4096).sum();
        let mut image = Cursor::new(vec![0; (IMAGE_MIN + content).next_multiple_of(4096)]);
        let options =
            FormatVolumeOptions::new().fat_type(FatType::Fat12).volume_id(0x4d79_6365).volume_label(*b"CIDATA     ");
        fatfs::format_volume(&mut image, options)?;
        let volume = FileSystem::new(&mut image, FsOptions::new())?;
        for (name, text) in files {
            volume.root_dir().create_file(name)?.write_all(text.as_bytes())?;
        }
        volume.unmount()?;
        Ok(image.into_inner())
    }

    /// cloud-init runs again when the instance's name changes: so it does for another customization, and only then.
    fn meta_data(&self) -> String {
        let mut content = blake3::Hasher::new();
        content.update(self.user_data().as_bytes());
        content.update(self.network.as_deref().unwrap_or_default().as_bytes());
        let id = format!("{}-{}", self.name, &content.finalize().to_hex()[..12]);
        let mut text = format!("instance-id: {}\nlocal-hostname: {}\n", quoted(&id), quoted(&self.name));
        if !self.ssh_keys.is_empty() {
            text += "public-keys:\n";
            self.ssh_keys.iter().for_each(|key| text += &format!("  - {}\n", quoted(key.trim())));
        }
        text
    }

    fn user_data(&self) -> String {
        match &self.customization {
            Some(text) if is_user_data(text) => text.clone(),
            Some(text) => format!(
                "#cloud-config\nwrite_files:\n  - path: /etc/mycelium/customization\n    content: {}\n",
                quoted(text)
            ),
            None => "#cloud-config\n{}\n".to_owned(),
        }
    }
}

fn is_user_data(text: &str) -> bool {
    let headers =
        ["#!", "#cloud-config", "#cloud-boothook", "#include", "#part-handler", "## template:", "Content-Type:"];
    let headers = headers.into_iter().chain(["MIME-Version:", "#upstart-job", "#cloud-config-archive"]);
    headers.into_iter().any(|header| text.starts_with(header))
}

/// A string as YAML: JSON's form of it is one.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn files(image: Vec<u8>) -> Vec<(String, String)> {
        let volume = FileSystem::new(Cursor::new(image), FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label(), "CIDATA");
        let read = |entry: fatfs::DirEntry<'_, _>| {
            let mut text = String::new();
            entry.to_file().read_to_string(&mut text).unwrap();
            (entry.file_name(), text)
        };
        volume.root_dir().iter().map(|entry| read(entry.unwrap())).collect()
    }

    #[test]
    fn names_and_user_data_become_a_seed() {
        let seed =
            Seed { name: "legacy: \"1\"".into(), customization: Some("legacy-app-setup".into()), ..Seed::default() };
        let named = files(seed.image().unwrap());
        assert_eq!(named[1].0, "user-data");
        assert!(named[1].1.contains("content: \"legacy-app-setup\"") && named[0].1.contains(r#"legacy: \"1\""#));
        let script = "#!/bin/sh\n".to_owned() + &"echo hello\n".repeat(100_000);
        let keys = vec!["ssh-ed25519 AAAA me\n".to_owned()];
        let network = Some("version: 2\n".to_owned());
        let seed = Seed { name: "a".into(), customization: Some(script.clone()), ssh_keys: keys, network };
        let given = files(seed.image().unwrap());
        assert!(given[1].1 == script && given[2] == ("network-config".into(), "version: 2\n".into()));
        assert!(given[0].1.ends_with("public-keys:\n  - \"ssh-ed25519 AAAA me\"\n"));
        assert_ne!(named[0].1, given[0].1);
        assert_eq!(seed.image().unwrap(), seed.image().unwrap());
    }

    /// What other tools think of it, where they are installed.
    #[test]
    fn other_tools_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.img");
        Seed { name: "a".into(), customization: Some("#cloud-config\n{}\n".into()), ..Seed::default() }
            .write(&path)
            .unwrap();
        let run = |program: &str, args: &[&str]| {
            let output = mycelium_linux::process::command(program).args(args).arg(&path).output().ok()?;
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        for program in ["blkid", "/usr/sbin/blkid", "/sbin/blkid"] {
            let Some(seen) = run(program, &["-p", "-o", "export"]) else { continue };
            assert!(seen.contains("LABEL=CIDATA") && seen.contains("TYPE=vfat"), "{seen}");
        }
        for program in ["fsck.fat", "/usr/sbin/fsck.fat"] {
            let Some(seen) = run(program, &["-n"]) else { continue };
            assert!(seen.contains("2 files"), "{seen}");
        }
    }
}
