//! The fields of the document: names, shapes, bounds and defaults. One table serves the strict reader and the reference.

use std::fmt::Write;

/// What a value may be.
pub(super) enum Shape {
    /// An object with these fields.
    Object(&'static [Field]),
    /// A text that is not empty.
    Text,
    /// Letters, digits, `-`, `_` and `.`, as in a file's name.
    Name,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// A whole number within bounds.
    Whole(u64, u64),
    /// A number within bounds.
    Number(f64, f64),
    /// `true` or `false`.
    Flag,
    /// Bytes, at least and at most.
    Size(u64, u64),
    /// `HOST:PORT`.
    Address,
    /// An address without a port.
    Ip,
    /// An Ethernet address.
    Mac,
    /// `none`, `tap`, `tap:BRIDGE`.
    Attachment,
    /// Several of this shape.
    List(&'static Shape),
    /// Not looked at.
    Any,
}

/// A field.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    /// As YAML; a dash when there is none.
    pub(super) default: &'static str,
    /// What it is for.
    pub(super) purpose: &'static str,
    /// Other names that people may try.
    pub(super) also: &'static [&'static str],
}

const fn field(name: &'static str, shape: Shape, default: &'static str, purpose: &'static str) -> Field {
    Field { name, shape, default, purpose, also: &[] }
}

const fn alias(
    name: &'static str,
    also: &'static [&'static str],
    shape: Shape,
    default: &'static str,
    purpose: &'static str,
) -> Field {
    Field { name, shape, default, purpose, also }
}

/// The smallest memory that a guest of today starts in.
pub(super) const MEMORY_MIN: u64 = 16 << 20;
const TI: u64 = 1 << 40;

const OS_CONFIG: &[Field] = &[
    alias(
        "type",
        &["os", "image"],
        Shape::Name,
        "-",
        "image `images/TYPE.qcow2`, `.raw` or `.img` below the data folder",
    ),
    alias(
        "customization",
        &["cloudInit", "userData"],
        Shape::Name,
        "-",
        "cloud-init document `customizations/NAME.yaml` below the data folder",
    ),
    field("kernel", Shape::Text, "-", "path of a kernel to start instead of what the disk says"),
    field("initrd", Shape::Text, "-", "path of the kernel's first file system"),
    alias("commandLine", &["cmdline", "append"], Shape::Text, "-", "the kernel's command line"),
];

const NETWORK_CONFIG: &[Field] = &[
    alias(
        "attachment",
        &["bridge", "net", "type"],
        Shape::Attachment,
        "none",
        "`none`, `tap`, `tap:BRIDGE`, the latter perhaps with `,name=DEVICE`",
    ),
    alias(
        "mac",
        &["macAddress"],
        Shape::Mac,
        "-",
        "Ethernet address; by default `52:54:00` and three bytes of the name's hash",
    ),
];

const STORAGE_CONFIG: &[Field] = &[alias(
    "image",
    &["disk", "path"],
    Shape::Text,
    "-",
    "path of an image, qcow2 or raw, instead of one by `osConfig.type`",
)];

const VM_SPEC: &[Field] = &[
    field("vmId", Shape::Name, "-", "identifier, where it is not `metadata.name`"),
    alias("cpuCores", &["cpus", "cpu", "cores", "vcpus"], Shape::Whole(1, 255), "1", "virtual processors"),
    alias("memorySize", &["memory", "ram", "mem"], Shape::Size(MEMORY_MIN, 16 * TI), "512Mi", "memory"),
    alias(
        "diskSize",
        &["disk", "storage"],
        Shape::Size(1 << 20, 1024 * TI),
        "10Gi",
        "size of the disk, where the image is smaller",
    ),
    alias("osConfig", &["os"], Shape::Object(OS_CONFIG), "-", ""),
    alias("networkConfig", &["network", "net"], Shape::Object(NETWORK_CONFIG), "-", ""),
    field("storageConfig", Shape::Object(STORAGE_CONFIG), "-", ""),
];

const EPOCH: &[Field] = &[
    alias("minimum", &["min"], Shape::Whole(1, 1000), "5", "time between checkpoints, at least"),
    alias("maximum", &["max"], Shape::Whole(1, 10_000), "100", "time between checkpoints, at most"),
];

const DISTRIBUTED_RAM: &[Field] = &[
    alias(
        "bufferSize",
        &["buffer"],
        Shape::Size(8 << 20, TI),
        "256Mi",
        "most that is held for replication: epochs under way, page copies, held output",
    ),
    alias(
        "throttleThreshold",
        &["threshold", "throttlingThreshold"],
        Shape::Number(0.05, 0.99),
        "0.7",
        "fill level of the buffer above which the guest is slowed",
    ),
    alias(
        "throttlingCurve",
        &["curve", "throttleCurve"],
        Shape::OneOf(&["linear", "exponential"]),
        "exponential",
        "how it is slowed",
    ),
    alias(
        "throttlingExponent",
        &["exponent"],
        Shape::Number(0.1, 20.0),
        "4.0",
        "how sharply an exponential curve bends",
    ),
    alias(
        "maximumThrottle",
        &["maxThrottle", "maximumIntensity"],
        Shape::Number(0.0, 0.99),
        "0.9",
        "share of its processor time that the guest loses at most before the buffer is full",
    ),
    alias(
        "emergencyPauseEnabled",
        &["emergencyPause"],
        Shape::Flag,
        "true",
        "full buffer: pause the guest; `false`: best effort, output leaves at once, safe or not",
    ),
    field("outputCommit", Shape::OneOf(&["any", "majority", "all"]), "majority", "whose copy makes output safe"),
    field(
        "compression",
        Shape::OneOf(&["auto", "never", "lz4", "zstd"]),
        "auto",
        "whether pages are packed; `auto` measures",
    ),
    alias("epochMilliseconds", &["epoch"], Shape::Object(EPOCH), "-", ""),
];

const CONNECTIONS: &[Field] = &[
    alias("targetCount", &["count", "connections"], Shape::Whole(1, 64), "2", "encrypted connections to each backup"),
    field(
        "loadBalancing",
        Shape::OneOf(&["adaptive-bandwidth", "latency-optimized"]),
        "adaptive-bandwidth",
        "how they are used as one",
    ),
    field("localAddresses", Shape::List(&Shape::Ip), "[]", "addresses to connect from"),
];

const BACKUP: &[Field] = &[
    alias("nodeCount", &["count", "replicas"], Shape::Whole(0, 8), "1", "how many backups; further `nodes` are spares"),
    field(
        "selectionCriteria",
        Shape::OneOf(&["latency-optimized", "listed"]),
        "latency-optimized",
        "which of `nodes`: those with the shortest round trip, or the first ones",
    ),
    alias(
        "nodes",
        &["backups", "addresses"],
        Shape::List(&Shape::Address),
        "[]",
        "`HOST:PORT` of hosts that run `mycelium vm backup`",
    ),
];

const PERFORMANCE: &[Field] = &[
    field("cpuPinning", Shape::Flag, "false", "a host processor for each virtual one"),
    field("hugePages", Shape::Flag, "false", "memory in huge pages, where the host has set some aside"),
    alias(
        "sriovNetworking",
        &["sriov"],
        Shape::Flag,
        "false",
        "a virtual function of the network card: accepted, reported as not supported, and a tap is used",
    ),
];

const DETECTION: &[Field] = &[
    alias(
        "heartbeatMilliseconds",
        &["heartbeat", "interval"],
        Shape::Whole(1, 10_000),
        "10",
        "time between signs of life; leases, promises and suspicions follow it",
    ),
    field("witness", Shape::Address, "-", "`HOST:PORT` of a witness, which breaks ties between two hosts"),
    alias(
        "alone",
        &["whenAlone"],
        Shape::OneOf(&["go-on", "hold"]),
        "go-on",
        "a primary that lost its last backup goes on unprotected, or holds its output until there is one again",
    ),
    field(
        "group",
        Shape::Text,
        "group.pem",
        "path of the group file, from the folder `vm` of the data folder; hosts that stand by use their own",
    ),
];

const SPEC: &[Field] = &[
    alias("vmSpec", &["vm", "machine"], Shape::Object(VM_SPEC), "-", ""),
    alias("distributedRAM", &["distributedMemory"], Shape::Object(DISTRIBUTED_RAM), "-", ""),
    alias("rhizomorphConnections", &["connections", "rhizomorphConfig"], Shape::Object(CONNECTIONS), "-", ""),
    alias("backupStrategy", &["backups"], Shape::Object(BACKUP), "-", ""),
    field("performanceConfig", Shape::Object(PERFORMANCE), "-", ""),
    field("failureDetection", Shape::Object(DETECTION), "-", ""),
];

const METADATA: &[Field] = &[
    field("name", Shape::Text, "-", "name of the virtual machine: a DNS label"),
    field("namespace", Shape::Text, "-", ""),
    field("labels", Shape::Any, "-", ""),
    field("annotations", Shape::Any, "-", ""),
    // What a server adds.
    field("uid", Shape::Any, "-", ""),
    field("resourceVersion", Shape::Any, "-", ""),
    field("generation", Shape::Any, "-", ""),
    field("generateName", Shape::Any, "-", ""),
    field("creationTimestamp", Shape::Any, "-", ""),
    field("deletionTimestamp", Shape::Any, "-", ""),
    field("deletionGracePeriodSeconds", Shape::Any, "-", ""),
    field("managedFields", Shape::Any, "-", ""),
    field("ownerReferences", Shape::Any, "-", ""),
    field("finalizers", Shape::Any, "-", ""),
];

/// The whole document.
pub(super) const DOCUMENT: Shape = Shape::Object(&[
    field("apiVersion", Shape::OneOf(&["mycelium.network/v1"]), "-", ""),
    field("kind", Shape::OneOf(&["EndophyteVM"]), "-", ""),
    field("metadata", Shape::Object(METADATA), "-", ""),
    field("spec", Shape::Object(SPEC), "-", ""),
    field("status", Shape::Any, "-", ""),
]);

/// The fields of `spec` as a Markdown table: name, values, default, purpose.
pub fn reference() -> String {
    let mut table = String::from("| field of `spec` | values | default | purpose |\n|---|---|---|---|\n");
    rows(&mut table, "", SPEC);
    table
}

fn rows(table: &mut String, prefix: &str, fields: &[Field]) {
    for field in fields {
        let path = format!("{prefix}{}", field.name);
        if let Shape::Object(inner) = &field.shape {
            rows(table, &format!("{path}."), inner);
        } else {
            let default = if field.default == "-" { "-".to_owned() } else { format!("`{}`", field.default) };
            // Writing to a string does not fail.
            let _ = writeln!(table, "| `{path}` | {} | {default} | {} |", field.shape.allowed(), field.purpose);
        }
    }
}

impl Shape {
    /// What is allowed, in words.
    pub(super) fn allowed(&self) -> String {
        match self {
            Self::Object(_) => "an object".to_owned(),
            Self::Text => "a text".to_owned(),
            Self::Name => "a name of letters, digits, `-`, `_` and `.`".to_owned(),
            Self::OneOf(values) => values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", "),
            Self::Whole(min, max) => format!("a whole number from {min} to {max}"),
            Self::Number(min, max) => format!("a number from {min} to {max}"),
            Self::Flag => "`true` or `false`".to_owned(),
            Self::Size(min, max) => format!("bytes, from {} to {}, such as `512Mi`", size(*min), size(*max)),
            Self::Address => "`HOST:PORT`".to_owned(),
            Self::Ip => "an IP address".to_owned(),
            Self::Mac => "an Ethernet address such as `52:54:00:12:34:56`".to_owned(),
            Self::Attachment => "`none`, `tap` or `tap:BRIDGE`".to_owned(),
            Self::List(inner) => format!("a list, each {}", inner.allowed()),
            Self::Any => "anything".to_owned(),
        }
    }
}

/// Bytes as a quantity.
pub(super) fn size(bytes: u64) -> String {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    crate::quantity::Quantity::from_value(bytes, crate::quantity::Format::BinarySi).to_string()
}
