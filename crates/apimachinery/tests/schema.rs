//! The generated facts, checked against what is known of Kubernetes 1.35.

use mycelium_apimachinery::schema::{
    ListKind, Scalar, Shape, groups, resource_named, resource_of_kind, resources, types,
};

#[test]
fn every_resource_has_a_type_and_a_list_type() {
    for resource in resources() {
        let find = |kind: &str| types().for_gvk(resource.group, resource.version, kind);
        assert!(find(resource.kind).is_some(), "{resource:?}");
        if resource.allows("list") {
            assert!(find(&resource.list_kind()).is_some(), "{resource:?}");
        }
    }
}

#[test]
fn fields_are_sorted_and_found() {
    for ty in types().all() {
        assert!(ty.fields().is_sorted_by(|a, b| a.name < b.name), "{}", ty.name);
        for field in ty.fields() {
            assert_eq!(ty.field(&field.name).map(|f| &f.name), Some(&field.name));
        }
    }
}

#[test]
fn only_stable_versions_are_served() {
    assert!(resources().iter().all(|r| !r.version.contains("alpha") && !r.version.contains("beta")));
    assert_eq!(groups()[0].name, "");
    let autoscaling = groups().into_iter().find(|g| g.name == "autoscaling").expect("served");
    assert_eq!(autoscaling.versions, ["v2", "v1"]);
    assert!(resource_named("", "v1", "pods").is_some());
    assert!(resource_named("networking.k8s.io", "v1beta1", "ipaddresses").is_none());
}

#[test]
fn facts_of_a_deployment() {
    let resource = resource_of_kind("apps", "v1", "Deployment").expect("served");
    assert_eq!((resource.short_names, resource.categories), (&["deploy"][..], &["all"][..]));
    let scale = resource.subresource("scale").expect("served");
    assert_eq!((scale.api_version().as_str(), scale.kind), ("autoscaling/v1", "Scale"));
    let spec = &types().for_gvk("apps", "v1", "Deployment").expect("known").field("spec").expect("known").ty;
    assert_eq!(spec.go_name(), "v1.DeploymentSpec");
    assert!(spec.field("strategy").expect("known").retain_keys);
    let containers = spec.field("template").and_then(|t| t.ty.field("spec")).and_then(|s| s.ty.field("containers"));
    let containers = containers.expect("known");
    assert_eq!(containers.merge_key.as_deref(), Some("name"));
    let Shape::List { item, kind: ListKind::Map(keys), .. } = &containers.ty.shape else { panic!("a keyed list") };
    assert_eq!(keys.as_slice(), ["name"]);
    let ports = &item.field("ports").expect("known").ty;
    let Shape::List { item: port, .. } = &ports.shape else { panic!("a list") };
    assert_eq!(port.field("protocol").and_then(|f| f.default.clone()), Some("TCP".into()));
    let limits = &item.field("resources").and_then(|r| r.ty.field("limits")).expect("known").ty;
    let Shape::Map { value, .. } = &limits.shape else { panic!("a map") };
    assert!(matches!(value.shape, Shape::Scalar(Scalar::Quantity)));
}

#[test]
fn an_overridden_map_type_is_seen() {
    let granular = |ty: &str, field: &str| {
        let ty = types().named(&format!("io.k8s.api.core.v1.{ty}")).expect("known");
        let field = ty.field(field).expect("known");
        matches!(&field.ty.shape, Shape::Struct { atomic: false, .. })
    };
    assert!(granular("PersistentVolumeSpec", "claimRef"));
    assert!(!granular("Event", "involvedObject"));
}
