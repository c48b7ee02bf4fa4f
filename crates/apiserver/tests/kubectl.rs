//! The real kubectl against the server over TLS.
#![allow(missing_docs)]

mod common;

use common::start;

const CONFIG: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: conf\ndata:\n  a: one\n";

#[test]
fn objects_come_and_go() {
    let server = start();
    assert!(server.kubectl(&["version"]).contains("v1.35.0+mycelium"));
    server.kubectl(&["create", "namespace", "shop"]);
    server.kubectl(&["create", "configmap", "cm", "--from-literal=a=b", "-n", "shop"]);
    assert!(server.kubectl(&["get", "cm", "-n", "shop"]).contains("cm"));
    assert_eq!(server.kubectl(&["get", "cm", "cm", "-n", "shop", "-o", "jsonpath={.data.a}"]), "b");
    server.kubectl(&["label", "cm", "cm", "-n", "shop", "x=y"]);
    server.kubectl(&["annotate", "cm", "cm", "-n", "shop", "note=text"]);
    assert!(server.kubectl(&["get", "cm", "-n", "shop", "-l", "x=y", "-o", "name"]).contains("configmap/cm"));
    assert_eq!(server.kubectl(&["get", "cm", "-n", "shop", "-l", "x=z", "-o", "name"]), "");
    let again = server.kubectl_with(&["create", "configmap", "cm", "-n", "shop"], "");
    assert!(!again.ok);
    assert!(again.err.contains("configmaps \"cm\" already exists"), "{}", again.err);
    server.kubectl(&["delete", "cm", "cm", "-n", "shop"]);
    let gone = server.kubectl_with(&["get", "cm", "cm", "-n", "shop"], "");
    assert!(gone.err.contains("configmaps \"cm\" not found"), "{}", gone.err);
    let nowhere = server.kubectl_with(&["create", "configmap", "cm", "-n", "nowhere"], "");
    assert!(nowhere.err.contains("namespaces \"nowhere\" not found"), "{}", nowhere.err);
}

#[test]
fn apply_works_both_ways() {
    let server = start();
    assert!(server.kubectl_in(&["apply", "-f", "-"], CONFIG).contains("configmap/conf created"));
    assert!(server.kubectl_in(&["apply", "-f", "-"], CONFIG).contains("configmap/conf unchanged"));
    let changed = CONFIG.replace("one", "two");
    assert!(server.kubectl_in(&["apply", "-f", "-"], &changed).contains("configmap/conf configured"));
    assert_eq!(server.kubectl(&["get", "cm", "conf", "-o", "jsonpath={.data.a}"]), "two");
    let diff = server.kubectl_with(&["diff", "-f", "-"], CONFIG);
    assert!(diff.out.contains("+  a: one"), "{}{}", diff.out, diff.err);

    let other = CONFIG.replace("conf", "served");
    assert!(server.kubectl_in(&["apply", "--server-side", "-f", "-"], &other).contains("serverside-applied"));
    let taken = server
        .kubectl_with(&["apply", "--server-side", "--field-manager=other", "-f", "-"], &other.replace("one", "three"));
    assert!(!taken.ok);
    assert!(taken.err.contains("conflict with \"kubectl\": .data.a"), "{}", taken.err);
    server.kubectl_in(
        &["apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-"],
        &other.replace("one", "three"),
    );
    assert_eq!(server.kubectl(&["get", "cm", "served", "-o", "jsonpath={.data.a}"]), "three");
}
