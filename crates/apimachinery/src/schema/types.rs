//! What is known about a type: its fields, how its lists and maps merge, how Go names it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::text;

/// A string that is part of the program for built-in types.
pub type Name = Cow<'static, str>;

/// A type. Built-in ones live for ever, those of custom resources are made from their schema.
#[derive(Clone, Debug)]
pub struct Type {
    /// OpenAPI name (`io.k8s.api.apps.v1.Deployment`); empty for a type that is written in place.
    pub name: Name,
    /// What values look like.
    pub shape: Shape,
    /// The kind, if values are objects of the API.
    pub gvk: Option<Gvk>,
}

/// Group, version and kind; group and version are `*` for a kind that every group has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gvk {
    /// Group; empty for the core group.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
}

/// What values of a type look like.
#[derive(Clone, Debug)]
pub enum Shape {
    /// Any JSON; maps merge per key, lists are atomic.
    Any,
    /// One value.
    Scalar(Scalar),
    /// A list.
    List {
        /// Type of the items.
        item: TypeRef,
        /// How two lists merge.
        kind: ListKind,
        /// Whether [`Self::List::kind`] is stated (a list without it is atomic).
        explicit: bool,
    },
    /// A map from strings.
    Map {
        /// Type of the values.
        value: TypeRef,
        /// Whether the map has one owner as a whole.
        atomic: bool,
    },
    /// An object with known fields.
    Struct {
        /// The fields, sorted by name.
        fields: Vec<Field>,
        /// Whether the object has one owner as a whole.
        atomic: bool,
        /// Whether fields that are not known are kept.
        preserve_unknown: bool,
    },
}

/// Types of single values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// `string`
    String,
    /// `int32`
    Int32,
    /// `int64`
    Int64,
    /// `boolean`
    Bool,
    /// `double`
    Double,
    /// Bytes in base64.
    Bytes,
    /// RFC 3339 with whole seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// A number or a text.
    IntOrString,
    /// A quantity: a text or a number.
    Quantity,
}

/// How lists merge in server-side apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// As a whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Items are identified by these fields.
    Map(Vec<Name>),
}

/// A field of an object.
#[derive(Clone, Debug)]
pub struct Field {
    /// Name in JSON.
    pub name: Name,
    /// Its type.
    pub ty: TypeRef,
    /// Whether the schema requires it.
    pub required: bool,
    /// Whether Go always writes it, as `{}` if it is empty.
    pub value_struct: bool,
    /// Default by the schema (not by the defaulting functions).
    pub default: Option<Value>,
    /// Strategic merge patch: the strategy as written, `merge,retainKeys`.
    pub patch_strategy: Option<Name>,
    /// Strategic merge patch: lists are merged.
    pub patch_merge: bool,
    /// Strategic merge patch: understands `$retainKeys`.
    pub retain_keys: bool,
    /// Strategic merge patch: the field that identifies an item.
    pub merge_key: Option<Name>,
}

impl Field {
    /// An optional field.
    pub fn new(name: Name, ty: TypeRef) -> Self {
        Self {
            name,
            ty,
            required: false,
            value_struct: false,
            default: None,
            patch_strategy: None,
            patch_merge: false,
            retain_keys: false,
            merge_key: None,
        }
    }
}

/// A reference to a type; dereferences to it.
#[derive(Clone)]
pub struct TypeRef(Target);

#[derive(Clone)]
enum Target {
    Builtin(u16),
    Owned(Arc<Type>),
}

impl TypeRef {
    pub(super) fn builtin(index: usize) -> Self {
        Self(Target::Builtin(index as u16))
    }

    /// A reference to a type that is not built in.
    pub fn new(ty: Type) -> Self {
        Self(Target::Owned(Arc::new(ty)))
    }
}

impl Deref for TypeRef {
    type Target = Type;

    fn deref(&self) -> &Type {
        match &self.0 {
            Target::Builtin(index) => &types().all[usize::from(*index)],
            Target::Owned(ty) => ty,
        }
    }
}

impl std::fmt::Debug for TypeRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Target::Builtin(index) => write!(f, "@{index}"),
            Target::Owned(ty) => ty.fmt(f),
        }
    }
}

/// A type about which nothing is known.
pub static ANY: Type = Type { name: Cow::Borrowed(""), shape: Shape::Any, gvk: None };

impl Type {
    /// The field of a name, of an object.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let Shape::Struct { fields, .. } = &self.shape else { return None };
        fields.binary_search_by(|f| f.name.as_ref().cmp(name)).ok().map(|i| &fields[i])
    }

    /// The fields of an object.
    pub fn fields(&self) -> &[Field] {
        match &self.shape {
            Shape::Struct { fields, .. } => fields,
            _ => &[],
        }
    }

    /// The type of what lies under a key: a field's, a map's values', or anything.
    pub fn child(&self, key: &str) -> Option<&Type> {
        match &self.shape {
            Shape::Struct { preserve_unknown, .. } => {
                self.field(key).map(|f| &*f.ty).or(preserve_unknown.then_some(&ANY))
            }
            Shape::Map { value, .. } => Some(value),
            Shape::Any => Some(&ANY),
            _ => None,
        }
    }

    /// Last part of the name: `DeploymentSpec`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }

    /// What Go calls the type in messages: `int32`, `[]v1.Container`, `map[string]string`.
    pub fn go_name(&self) -> String {
        if !self.name.is_empty() {
            let mut parts = self.name.rsplit('.');
            let (kind, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            return format!("{package}.{kind}");
        }
        match &self.shape {
            Shape::Scalar(scalar) => scalar.go_name().to_owned(),
            Shape::List { item, .. } => format!("[]{}", item.go_name()),
            Shape::Map { value, .. } => format!("map[string]{}", value.go_name()),
            Shape::Any => "interface {}".to_owned(),
            Shape::Struct { .. } => "map[string]interface {}".to_owned(),
        }
    }

    pub(super) fn set_atomic(&mut self, value: bool) {
        if let Shape::Map { atomic, .. } | Shape::Struct { atomic, .. } = &mut self.shape {
            *atomic = value;
        }
    }
}

impl Scalar {
    fn go_name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Bool => "bool",
            Self::Double => "float64",
            Self::Bytes => "[]uint8",
            Self::Time => "v1.Time",
            Self::MicroTime => "v1.MicroTime",
            Self::IntOrString => "intstr.IntOrString",
            Self::Quantity => "resource.Quantity",
        }
    }
}

/// The built-in types.
pub struct Types {
    all: Vec<Type>,
    named: usize,
    by_gvk: BTreeMap<(&'static str, &'static str, &'static str), usize>,
}

impl Types {
    fn new() -> Self {
        let text = include_str!("../../data/types.txt");
        let all = text::parse(text);
        let named = text.lines().filter(|l| !l.starts_with(' ')).count();
        let by_gvk = all[..named]
            .iter()
            .enumerate()
            .filter_map(|(i, t)| t.gvk.map(|g| ((g.group, g.version, g.kind), i)))
            .collect();
        Self { all, named, by_gvk }
    }

    /// The type of a kind. Kinds that every group has (`DeleteOptions`, `WatchEvent`) are found in any.
    pub fn for_gvk(&'static self, group: &str, version: &str, kind: &str) -> Option<&'static Type> {
        let find = |key: (&str, &str, &str)| {
            let by_gvk: &BTreeMap<(&str, &str, &str), usize> = &self.by_gvk;
            by_gvk.get(&key).map(|i| &self.all[*i])
        };
        find((group, version, kind)).or_else(|| find(("*", "*", kind)))
    }

    /// The type of an OpenAPI name.
    pub fn named(&'static self, name: &str) -> Option<&'static Type> {
        self.index_of(name).map(|i| &self.all[i])
    }

    /// All types that have a name, sorted by it.
    pub fn all(&'static self) -> &'static [Type] {
        &self.all[..self.named]
    }

    /// `metav1.ObjectMeta`.
    pub fn object_meta(&'static self) -> TypeRef {
        TypeRef::builtin(self.index_of("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap_or_default())
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        self.all[..self.named].binary_search_by(|t| t.name.as_ref().cmp(name)).ok()
    }
}

/// The built-in types; read at the first use.
pub fn types() -> &'static Types {
    static TYPES: OnceLock<Types> = OnceLock::new();
    TYPES.get_or_init(Types::new)
}
