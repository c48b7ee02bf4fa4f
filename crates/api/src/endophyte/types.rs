//! The types. Their defaults are those that `fields` prints; a test holds the two together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::network::{Attachment, Mac};
use crate::quantity::{Format, Quantity};

const MI: i64 = 1 << 20;
const GI: i64 = 1 << 30;

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndophyteVM {
    /// `mycelium.network/v1`.
    pub api_version: String,
    /// `EndophyteVM`.
    pub kind: String,
    /// Name, labels, annotations.
    pub metadata: Metadata,
    /// What is asked for.
    #[serde(default)]
    pub spec: EndophyteSpec,
}

/// The part of an object's metadata that matters here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    /// Name of the virtual machine.
    pub name: String,
    /// Namespace, on a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndophyteSpec {
    /// The machine.
    pub vm_spec: VmSpec,
    /// Replication of its memory, and what happens when that cannot keep up.
    #[serde(rename = "distributedRAM")]
    pub distributed_ram: DistributedRam,
    /// Connections to each backup.
    pub rhizomorph_connections: RhizomorphConnections,
    /// Who holds the copies.
    pub backup_strategy: BackupStrategy,
    /// What the host gives beyond the ordinary.
    pub performance_config: PerformanceConfig,
    /// How the loss of a host is noticed.
    pub failure_detection: FailureDetection,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VmSpec {
    /// Identifier, where it is not the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<String>,
    /// Virtual processors.
    pub cpu_cores: u32,
    /// Memory.
    pub memory_size: Quantity,
    /// Disk, where the image is smaller.
    pub disk_size: Quantity,
    /// What runs in it.
    pub os_config: OsConfig,
    /// Its network card.
    pub network_config: NetworkConfig,
    /// Its disk.
    pub storage_config: StorageConfig,
}

/// What runs in the machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OsConfig {
    /// Name of an image in the images folder.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name of a cloud-init document in the customizations folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customization: Option<String>,
    /// A kernel to start instead of what the disk says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// The kernel's first file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// The kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_line: Option<String>,
}

/// The network card.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NetworkConfig {
    /// What it is connected to.
    #[serde(with = "attachment")]
    pub attachment: Attachment,
    /// Its address; by default one made from the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

mod attachment {
    //! An attachment as its text.
    use super::{Attachment, Deserialize};

    pub(super) fn serialize<S: serde::Serializer>(value: &Attachment, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Attachment, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StorageConfig {
    /// Path of an image, qcow2 or raw, instead of one by `osConfig.type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// How much slower a guest runs that writes faster than its backups can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThrottlingCurve {
    /// In proportion to how far the buffer is filled beyond the threshold.
    Linear,
    /// Gently at first, then ever more.
    Exponential,
}

/// Whose copy makes output safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputCommit {
    /// One backup has it.
    Any,
    /// So many backups have it that, with the primary, they are most of the group.
    Majority,
    /// Every backup has it.
    All,
}

/// Whether pages are packed on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// When it makes them arrive sooner, by measurement.
    Auto,
    /// Never.
    Never,
    /// With lz4.
    Lz4,
    /// With zstd.
    Zstd,
}

/// Bounds of the time between checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EpochLength {
    /// Milliseconds at least.
    pub minimum: u64,
    /// Milliseconds at most.
    pub maximum: u64,
}

/// Replication of memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DistributedRam {
    /// Most that is held for replication: epochs under way, page copies, held output.
    pub buffer_size: Quantity,
    /// Fill level above which the guest is slowed.
    pub throttle_threshold: f64,
    /// How it is slowed.
    pub throttling_curve: ThrottlingCurve,
    /// How sharply an exponential curve bends.
    pub throttling_exponent: f64,
    /// Share of its processor time that the guest loses at most before the buffer is full.
    pub maximum_throttle: f64,
    /// With a full buffer: pause the guest (true), or let output leave before it is safe (false).
    pub emergency_pause_enabled: bool,
    /// Whose copy makes output safe.
    pub output_commit: OutputCommit,
    /// Whether pages are packed.
    pub compression: Compression,
    /// Bounds of the time between checkpoints.
    pub epoch_milliseconds: EpochLength,
}

/// How several connections are used as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadBalancing {
    /// Each carries what its measured bandwidth allows.
    AdaptiveBandwidth,
    /// Each message goes where it arrives first.
    LatencyOptimized,
}

/// Connections to each backup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RhizomorphConnections {
    /// How many.
    pub target_count: u32,
    /// How they are used.
    pub load_balancing: LoadBalancing,
    /// Local addresses to connect from; by default what routing chooses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub local_addresses: Vec<String>,
}

/// Which of the hosts listed become backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SelectionCriteria {
    /// Those that answer fastest.
    LatencyOptimized,
    /// The first in the list.
    Listed,
}

/// Who holds the copies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BackupStrategy {
    /// How many backups.
    pub node_count: u32,
    /// Which.
    pub selection_criteria: SelectionCriteria,
    /// Addresses of hosts that run `mycelium vm backup`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
}

/// What the host gives beyond the ordinary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PerformanceConfig {
    /// A host processor for each virtual one.
    pub cpu_pinning: bool,
    /// Memory in huge pages.
    pub huge_pages: bool,
    /// A virtual function of the network card.
    pub sriov_networking: bool,
}

/// What a primary does that has lost its last backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alone {
    /// Goes on unprotected.
    GoOn,
    /// Holds its output until a backup is in sync.
    Hold,
}

/// How the loss of a host is noticed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FailureDetection {
    /// Time between signs of life.
    pub heartbeat_milliseconds: u64,
    /// Address of a witness, which breaks ties between two hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub witness: Option<String>,
    /// What a primary does that has lost its last backup.
    pub alone: Alone,
    /// The file that makes hosts members of one group.
    pub group: String,
}

impl Default for VmSpec {
    fn default() -> Self {
        Self {
            vm_id: None,
            cpu_cores: 1,
            memory_size: Quantity::from_value(512 * MI, Format::BinarySi),
            disk_size: Quantity::from_value(10 * GI, Format::BinarySi),
            os_config: OsConfig::default(),
            network_config: NetworkConfig::default(),
            storage_config: StorageConfig::default(),
        }
    }
}

impl Default for EpochLength {
    fn default() -> Self {
        Self { minimum: 5, maximum: 100 }
    }
}

impl Default for DistributedRam {
    fn default() -> Self {
        Self {
            buffer_size: Quantity::from_value(256 * MI, Format::BinarySi),
            throttle_threshold: 0.7,
            throttling_curve: ThrottlingCurve::Exponential,
            throttling_exponent: 4.0,
            maximum_throttle: 0.9,
            emergency_pause_enabled: true,
            output_commit: OutputCommit::Majority,
            compression: Compression::Auto,
            epoch_milliseconds: EpochLength::default(),
        }
    }
}

impl Default for RhizomorphConnections {
    fn default() -> Self {
        Self { target_count: 2, load_balancing: LoadBalancing::AdaptiveBandwidth, local_addresses: Vec::new() }
    }
}

impl Default for BackupStrategy {
    fn default() -> Self {
        Self { node_count: 1, selection_criteria: SelectionCriteria::LatencyOptimized, nodes: Vec::new() }
    }
}

impl Default for FailureDetection {
    fn default() -> Self {
        Self { heartbeat_milliseconds: 10, witness: None, alone: Alone::GoOn, group: "group.pem".to_owned() }
    }
}

impl EndophyteVM {
    /// `apiVersion`.
    pub const API_VERSION: &str = "mycelium.network/v1";
    /// `kind`.
    pub const KIND: &str = "EndophyteVM";

    /// A machine of which only the name is given.
    pub fn named(name: &str) -> Self {
        Self {
            api_version: Self::API_VERSION.to_owned(),
            kind: Self::KIND.to_owned(),
            metadata: Metadata { name: name.to_owned(), ..Metadata::default() },
            spec: EndophyteSpec::default(),
        }
    }

    /// The name that group, files and messages use.
    pub fn id(&self) -> &str {
        self.spec.vm_spec.vm_id.as_deref().unwrap_or(&self.metadata.name)
    }

    /// The address of its network card.
    pub fn mac(&self) -> Mac {
        self.spec.vm_spec.network_config.mac.unwrap_or_else(|| Mac::for_name(self.id()))
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> u64 {
        bytes(&self.spec.vm_spec.memory_size)
    }

    /// Bytes of disk.
    pub fn disk_bytes(&self) -> u64 {
        bytes(&self.spec.vm_spec.disk_size)
    }

    /// Bytes held for replication at most.
    pub fn buffer_bytes(&self) -> u64 {
        bytes(&self.spec.distributed_ram.buffer_size)
    }

    /// What the document asks for at a price that one should know.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.spec.distributed_ram.emergency_pause_enabled {
            warnings.push(
                "spec.distributedRAM.emergencyPauseEnabled is false: output leaves before a backup holds what led to it. \
                 When the host is lost, the guest goes back to its last checkpoint, and others may remember messages \
                 that it has not sent yet"
                    .to_owned(),
            );
        }
        let strategy = &self.spec.backup_strategy;
        if strategy.nodes.is_empty() {
            warnings.push(format!(
                "spec.backupStrategy asks for {} backup(s) and names none: the guest is not protected until there is \
                 one; give --backup HOST:PORT",
                strategy.node_count
            ));
        } else if strategy.nodes.len() < strategy.node_count as usize {
            warnings.push(format!(
                "spec.backupStrategy.nodeCount asks for {} backups, and nodes names {}: more are possible, but there will be \
                 no more than those",
                strategy.node_count,
                strategy.nodes.len()
            ));
        }
        warnings
    }
}

fn bytes(quantity: &Quantity) -> u64 {
    u64::try_from(quantity.value()).unwrap_or(0)
}
