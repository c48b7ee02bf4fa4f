//! Facts that no manifest holds: APIs that are gone, annotations that are served, what every cluster has.

/// An API that Kubernetes no longer serves.
pub struct Removed {
    /// `extensions/v1beta1`
    pub api_version: &'static str,
    /// Kinds.
    pub kinds: &'static [&'static str],
    /// The version that no longer had it.
    pub since: &'static str,
    /// What serves the same kind now, or what to do instead.
    pub instead: Instead,
}

/// What comes in place of a removed API.
#[derive(Clone, Copy)]
pub enum Instead {
    /// The same kind in another version.
    Version(&'static str),
    /// Something else.
    Other(&'static str),
}

use Instead::{Other, Version};

const fn gone(
    api_version: &'static str,
    kinds: &'static [&'static str],
    since: &'static str,
    instead: Instead,
) -> Removed {
    Removed { api_version, kinds, since, instead }
}

const WORKLOADS: &[&str] = &["Deployment", "DaemonSet", "ReplicaSet", "StatefulSet", "ControllerRevision"];
const ROLES: &[&str] = &["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"];
const WEBHOOKS: &[&str] = &["ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"];
const FLOW: &[&str] = &["FlowSchema", "PriorityLevelConfiguration"];
const REVIEWS: &[&str] =
    &["LocalSubjectAccessReview", "SelfSubjectAccessReview", "SubjectAccessReview", "SelfSubjectRulesReview"];
const HPA: &[&str] = &["HorizontalPodAutoscaler"];
const RESOURCE_CLAIMS: &[&str] = &["ResourceClaim", "ResourceClaimTemplate", "DeviceClass", "ResourceSlice"];
const POD_SECURITY: Instead =
    Other("label the namespace with pod-security.kubernetes.io/enforce=restricted (or baseline) instead");

/// APIs that 1.35 no longer serves.
pub const REMOVED: &[Removed] = &[
    gone("extensions/v1beta1", WORKLOADS, "1.16", Version("apps/v1")),
    gone("extensions/v1beta1", &["NetworkPolicy"], "1.16", Version("networking.k8s.io/v1")),
    gone("extensions/v1beta1", &["Ingress"], "1.22", Version("networking.k8s.io/v1")),
    gone("extensions/v1beta1", &["PodSecurityPolicy"], "1.16", POD_SECURITY),
    gone("policy/v1beta1", &["PodSecurityPolicy"], "1.25", POD_SECURITY),
    gone("policy/v1beta1", &["PodDisruptionBudget"], "1.25", Version("policy/v1")),
    gone("policy/v1beta1", &["Eviction"], "1.22", Version("policy/v1")),
    gone("apps/v1beta1", WORKLOADS, "1.16", Version("apps/v1")),
    gone("apps/v1beta2", WORKLOADS, "1.16", Version("apps/v1")),
    gone("batch/v2alpha1", &["CronJob"], "1.21", Version("batch/v1")),
    gone("batch/v1beta1", &["CronJob"], "1.25", Version("batch/v1")),
    gone("networking.k8s.io/v1beta1", &["Ingress", "IngressClass"], "1.22", Version("networking.k8s.io/v1")),
    gone("autoscaling/v2beta1", HPA, "1.25", Version("autoscaling/v2")),
    gone("autoscaling/v2beta2", HPA, "1.26", Version("autoscaling/v2")),
    gone("rbac.authorization.k8s.io/v1alpha1", ROLES, "1.23", Version("rbac.authorization.k8s.io/v1")),
    gone("rbac.authorization.k8s.io/v1beta1", ROLES, "1.22", Version("rbac.authorization.k8s.io/v1")),
    gone("apiextensions.k8s.io/v1beta1", &["CustomResourceDefinition"], "1.22", Version("apiextensions.k8s.io/v1")),
    gone("apiregistration.k8s.io/v1beta1", &["APIService"], "1.22", Version("apiregistration.k8s.io/v1")),
    gone("admissionregistration.k8s.io/v1beta1", WEBHOOKS, "1.22", Version("admissionregistration.k8s.io/v1")),
    gone("authentication.k8s.io/v1beta1", &["TokenReview"], "1.22", Version("authentication.k8s.io/v1")),
    gone("authorization.k8s.io/v1beta1", REVIEWS, "1.22", Version("authorization.k8s.io/v1")),
    gone("certificates.k8s.io/v1beta1", &["CertificateSigningRequest"], "1.22", Version("certificates.k8s.io/v1")),
    gone("coordination.k8s.io/v1beta1", &["Lease"], "1.22", Version("coordination.k8s.io/v1")),
    gone("discovery.k8s.io/v1beta1", &["EndpointSlice"], "1.25", Version("discovery.k8s.io/v1")),
    gone("events.k8s.io/v1beta1", &["Event"], "1.25", Version("events.k8s.io/v1")),
    gone("flowcontrol.apiserver.k8s.io/v1alpha1", FLOW, "1.24", Version("flowcontrol.apiserver.k8s.io/v1")),
    gone("flowcontrol.apiserver.k8s.io/v1beta1", FLOW, "1.26", Version("flowcontrol.apiserver.k8s.io/v1")),
    gone("flowcontrol.apiserver.k8s.io/v1beta2", FLOW, "1.29", Version("flowcontrol.apiserver.k8s.io/v1")),
    gone("flowcontrol.apiserver.k8s.io/v1beta3", FLOW, "1.32", Version("flowcontrol.apiserver.k8s.io/v1")),
    gone("node.k8s.io/v1beta1", &["RuntimeClass"], "1.25", Version("node.k8s.io/v1")),
    gone("scheduling.k8s.io/v1alpha1", &["PriorityClass"], "1.23", Version("scheduling.k8s.io/v1")),
    gone("scheduling.k8s.io/v1beta1", &["PriorityClass"], "1.22", Version("scheduling.k8s.io/v1")),
    gone(
        "settings.k8s.io/v1alpha1",
        &["PodPreset"],
        "1.20",
        Other("use a mutating admission webhook or write the fields"),
    ),
    gone("auditregistration.k8s.io/v1alpha1", &["AuditSink"], "1.19", Other("configure a log of audit on the server")),
    gone(
        "storage.k8s.io/v1beta1",
        &["StorageClass", "CSIDriver", "CSINode", "VolumeAttachment"],
        "1.22",
        Version("storage.k8s.io/v1"),
    ),
    gone("storage.k8s.io/v1alpha1", &["CSIStorageCapacity"], "1.24", Version("storage.k8s.io/v1")),
    gone("storage.k8s.io/v1beta1", &["CSIStorageCapacity"], "1.27", Version("storage.k8s.io/v1")),
    gone("resource.k8s.io/v1alpha1", RESOURCE_CLAIMS, "1.27", Version("resource.k8s.io/v1")),
    gone("resource.k8s.io/v1alpha2", RESOURCE_CLAIMS, "1.31", Version("resource.k8s.io/v1")),
];

/// The entry for a kind that is gone.
pub fn removed(api_version: &str, kind: &str) -> Option<&'static Removed> {
    REMOVED.iter().find(|removed| removed.api_version == api_version && removed.kinds.contains(&kind))
}

/// Groups of custom kinds whose controllers make no pods of their own from them.
pub fn makes_no_pods(group: &str) -> bool {
    const GROUPS: &[&str] = &[
        "cert-manager.io",
        "acme.cert-manager.io",
        "external-secrets.io",
        "bitnami.com",
        "autoscaling.k8s.io",
        "keda.sh",
        "traefik.io",
        "traefik.containo.us",
        "gateway.networking.k8s.io",
        "snapshot.storage.k8s.io",
        "kyverno.io",
        "networking.istio.io",
        "security.istio.io",
        "cilium.io",
        "crd.projectcalico.org",
        "metallb.io",
        "mycelium.network",
    ];
    const MONITORING: &[&str] = &["monitoring.coreos.com"];
    GROUPS.contains(&group) || MONITORING.contains(&group)
}

/// What people call the product that defines a group's kinds.
pub fn product(group: &str) -> Option<&'static str> {
    const PRODUCTS: &[(&str, &str)] = &[
        ("monitoring.coreos.com", "the Prometheus operator"),
        ("cert-manager.io", "cert-manager"),
        ("acme.cert-manager.io", "cert-manager"),
        ("autoscaling.k8s.io", "the vertical pod autoscaler"),
        ("external-secrets.io", "the external-secrets operator"),
        ("bitnami.com", "sealed-secrets"),
        ("traefik.io", "Traefik"),
        ("traefik.containo.us", "Traefik"),
        ("argoproj.io", "Argo"),
        ("keda.sh", "KEDA"),
        ("gateway.networking.k8s.io", "the Gateway API"),
        ("snapshot.storage.k8s.io", "the snapshot controller"),
        ("networking.istio.io", "Istio"),
        ("source.toolkit.fluxcd.io", "Flux"),
        ("kustomize.toolkit.fluxcd.io", "Flux"),
        ("helm.toolkit.fluxcd.io", "Flux"),
    ];
    PRODUCTS.iter().find(|(known, _)| *known == group).map(|(_, product)| *product)
}

/// What annotations of ingress-nginx begin with.
pub const NGINX: &str = "nginx.ingress.kubernetes.io/";

/// The annotations of ingress-nginx, without what they begin with.
pub const NGINX_ANNOTATIONS: &[&str] = &[
    "affinity",
    "affinity-canary-behavior",
    "affinity-mode",
    "allowlist-source-range",
    "app-root",
    "auth-always-set-cookie",
    "auth-cache-duration",
    "auth-cache-key",
    "auth-keepalive",
    "auth-keepalive-requests",
    "auth-keepalive-share-vars",
    "auth-keepalive-timeout",
    "auth-method",
    "auth-proxy-set-headers",
    "auth-realm",
    "auth-request-redirect",
    "auth-response-headers",
    "auth-secret",
    "auth-secret-type",
    "auth-signin",
    "auth-signin-redirect-param",
    "auth-snippet",
    "auth-tls-error-page",
    "auth-tls-match-cn",
    "auth-tls-pass-certificate-to-upstream",
    "auth-tls-secret",
    "auth-tls-verify-client",
    "auth-tls-verify-depth",
    "auth-type",
    "auth-url",
    "backend-protocol",
    "canary",
    "canary-by-cookie",
    "canary-by-header",
    "canary-by-header-pattern",
    "canary-by-header-value",
    "canary-weight",
    "canary-weight-total",
    "client-body-buffer-size",
    "configuration-snippet",
    "connection-proxy-header",
    "cors-allow-credentials",
    "cors-allow-headers",
    "cors-allow-methods",
    "cors-allow-origin",
    "cors-expose-headers",
    "cors-max-age",
    "custom-headers",
    "custom-http-errors",
    "default-backend",
    "denylist-source-range",
    "disable-proxy-intercept-errors",
    "enable-access-log",
    "enable-cors",
    "enable-global-auth",
    "enable-modsecurity",
    "enable-opentelemetry",
    "enable-opentracing",
    "enable-owasp-core-rules",
    "enable-rewrite-log",
    "force-ssl-redirect",
    "from-to-www-redirect",
    "global-rate-limit",
    "global-rate-limit-ignored-cidrs",
    "global-rate-limit-key",
    "global-rate-limit-window",
    "hsts",
    "http2-push-preload",
    "limit-allowlist",
    "limit-burst-multiplier",
    "limit-connections",
    "limit-rate",
    "limit-rate-after",
    "limit-rpm",
    "limit-rps",
    "limit-whitelist",
    "load-balance",
    "mirror-host",
    "mirror-request-body",
    "mirror-target",
    "modsecurity-snippet",
    "modsecurity-transaction-id",
    "opentelemetry-operation-name",
    "opentelemetry-trust-incoming-span",
    "opentracing-trust-incoming-span",
    "permanent-redirect",
    "permanent-redirect-code",
    "preserve-trailing-slash",
    "proxy-body-size",
    "proxy-buffer-size",
    "proxy-buffering",
    "proxy-buffers-number",
    "proxy-busy-buffers-size",
    "proxy-connect-timeout",
    "proxy-cookie-domain",
    "proxy-cookie-path",
    "proxy-http-version",
    "proxy-max-temp-file-size",
    "proxy-next-upstream",
    "proxy-next-upstream-timeout",
    "proxy-next-upstream-tries",
    "proxy-read-timeout",
    "proxy-redirect-from",
    "proxy-redirect-to",
    "proxy-request-buffering",
    "proxy-send-timeout",
    "proxy-ssl-ciphers",
    "proxy-ssl-name",
    "proxy-ssl-protocols",
    "proxy-ssl-secret",
    "proxy-ssl-server-name",
    "proxy-ssl-verify",
    "proxy-ssl-verify-depth",
    "relative-redirects",
    "rewrite-target",
    "satisfy",
    "secure-backends",
    "secure-verify-ca-secret",
    "server-alias",
    "server-snippet",
    "service-upstream",
    "session-cookie-change-on-failure",
    "session-cookie-conditional-samesite-none",
    "session-cookie-domain",
    "session-cookie-expires",
    "session-cookie-hash",
    "session-cookie-max-age",
    "session-cookie-name",
    "session-cookie-path",
    "session-cookie-samesite",
    "session-cookie-secure",
    "ssl-ciphers",
    "ssl-passthrough",
    "ssl-prefer-server-ciphers",
    "ssl-redirect",
    "stream-snippet",
    "temporal-redirect",
    "temporal-redirect-code",
    "upstream-hash-by",
    "upstream-hash-by-subset",
    "upstream-hash-by-subset-size",
    "upstream-vhost",
    "use-port-in-redirects",
    "use-regex",
    "whitelist-source-range",
    "x-forwarded-prefix",
];

/// Names that people write for annotations of ingress-nginx, and what does what they want.
pub const NGINX_MEANT: &[(&str, &str)] = &[
    ("rate-limit", "limit-rps (requests per second and client) or limit-rpm (per minute)"),
    ("rate-limit-window", "limit-rps or limit-rpm, whose name says the time"),
    ("rate-limit-rps", "limit-rps"),
    ("requests-per-second", "limit-rps"),
    ("websocket-services", "nothing: WebSockets pass by themselves; raise proxy-read-timeout for quiet ones"),
    ("max-body-size", "proxy-body-size"),
    ("client-max-body-size", "proxy-body-size"),
    ("timeout", "proxy-read-timeout and proxy-send-timeout"),
    ("redirect-to-https", "ssl-redirect or force-ssl-redirect"),
    ("cors-allow-origins", "cors-allow-origin"),
];

/// ClusterRoles that every cluster has; besides them those that begin with `system:`.
pub const CLUSTER_ROLES: &[&str] = &["cluster-admin", "admin", "edit", "view"];

/// Names of storage classes by which clusters mean their ordinary one: claims for them are served.
pub const ALIASED_CLASSES: &[&str] = mycelium_api::storage::DEFAULT_ALIASES;
