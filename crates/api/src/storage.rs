//! Words that everybody who deals with volumes agrees on.

/// Who makes the volumes of the classes that this machine serves.
pub const PROVISIONER: &str = "mycelium.network/local";
/// What a volume of ours names as its driver; its handle is the name of its folder.
pub const DRIVER: &str = "local.mycelium.network";
/// The storage class that every cluster begins with.
pub const DEFAULT_CLASS: &str = "local";
/// On a storage class: other names, separated by commas, by which claims may ask for it where no class has that name.
pub const ALIASES: &str = "mycelium.network/aliases";
/// The other names of the class that every cluster begins with: what the ordinary class is called elsewhere.
pub const DEFAULT_ALIASES: &[&str] = &[
    "azurefile",
    "csi-hostpath-sc",
    "default",
    "do-block-storage",
    "efs-sc",
    "fast",
    "fast-ssd",
    "gp2",
    "gp3",
    "hostpath",
    "local-path",
    "longhorn",
    "managed-csi",
    "managed-premium",
    "microk8s-hostpath",
    "nfs",
    "nfs-client",
    "premium-rwo",
    "rook-ceph-block",
    "ssd",
    "standard",
    "standard-rwo",
    "standard-rwx",
];

/// On a class: it serves claims that name none.
pub const IS_DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// Keeps a claim while pods use it.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Keeps a volume while a claim has it.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Keeps the object of a volume that was made for a claim until its folder is gone.
pub const FOLDER_PROTECTION: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// Who made a volume.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
