//! Finding out who asks: certificate (decided by the transport), bearer token, impersonation.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde_json::Value;

use crate::auth::rbac::Attributes;
use crate::auth::tokens::{Claims, ISSUER};
use crate::auth::{AUTHENTICATED, Identity};
use crate::codec;
use crate::error::ApiError;
use crate::route;
use crate::server::Inner;

/// The identity of a request: its bearer token's if it has one, else the transport's.
pub fn authenticate(server: &Inner, headers: &HeaderMap, transport: Identity) -> Result<Identity, ApiError> {
    let header = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = header.and_then(|h| h.strip_prefix("Bearer ").or_else(|| h.strip_prefix("bearer ")));
    match token {
        Some(token) if transport.is_anonymous() => Ok(verify(server, token.trim(), ISSUER)?.0.authenticated()),
        _ => Ok(transport.authenticated()),
    }
}

/// Verifies a service-account token for an audience: the account and the object the token is bound to must still exist.
pub fn verify(server: &Inner, token: &str, audience: &str) -> Result<(Identity, Claims), ApiError> {
    let refused = || ApiError::Unauthorized { message: "Unauthorized".into() };
    let claims = server.tokens.verify(token).map_err(|_| refused())?;
    if !claims.aud.iter().any(|a| a == audience) {
        return Err(refused());
    }
    let bound = &claims.bound;
    let alive = |resource: &str, object: &crate::auth::tokens::ObjectRef| {
        let entry = server.store.get(&format!("/registry/core/{resource}/{}/{}", bound.namespace, object.name));
        let object_now = entry.and_then(|entry| codec::parse_entry(&entry).ok());
        object_now.is_some_and(|o| object.uid.is_empty() || o["metadata"]["uid"].as_str() == Some(&object.uid))
    };
    let bound_alive = alive("serviceaccounts", &bound.serviceaccount)
        && bound.pod.as_ref().is_none_or(|pod| alive("pods", pod))
        && bound.secret.as_ref().is_none_or(|secret| alive("secrets", secret));
    if !bound_alive {
        return Err(refused());
    }
    Ok((identity(&claims), claims))
}

fn identity(claims: &Claims) -> Identity {
    let bound = &claims.bound;
    let mut who = Identity {
        user: claims.sub.clone(),
        uid: bound.serviceaccount.uid.clone(),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{}", bound.namespace),
            AUTHENTICATED.to_owned(),
        ],
        ..Identity::default()
    };
    let mut add = |key: &str, value: &str| {
        who.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    add("credential-id", &format!("JTI={}", claims.jti));
    if let Some(pod) = &bound.pod {
        add("pod-name", &pod.name);
        add("pod-uid", &pod.uid);
    }
    if let Some(node) = &bound.node {
        add("node-name", &node.name);
        if !node.uid.is_empty() {
            add("node-uid", &node.uid);
        }
    }
    who
}

/// Takes on the identity that `Impersonate-User` names, if the caller may.
pub fn impersonate(server: &Inner, headers: &HeaderMap, who: Identity) -> Result<Identity, ApiError> {
    let text = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let extra: Vec<(String, String)> = headers
        .iter()
        .filter_map(|(name, value)| {
            let key = name.as_str().strip_prefix("impersonate-extra-")?;
            Some((crate::request::percent_decode(key), text(value)))
        })
        .collect();
    let uid = headers.get("impersonate-uid").map(text);
    let Some(user) = headers.get("impersonate-user").map(text) else {
        if headers.contains_key("impersonate-group") || uid.is_some() || !extra.is_empty() {
            let why = "requested impersonation of groups, uid or extra without impersonating a user";
            return Err(ApiError::internal(why));
        }
        return Ok(who);
    };
    let groups: Vec<String> = headers.get_all("impersonate-group").iter().map(text).collect();
    let want = |group: &str, resource: &str, name: &str, namespace: &str| Attributes {
        verb: "impersonate".into(),
        group: group.into(),
        resource: resource.into(),
        name: name.into(),
        namespace: namespace.into(),
        ..Attributes::default()
    };
    let account = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, name)) => route::authorize(server, &who, &want("", "serviceaccounts", name, namespace))?,
        None => route::authorize(server, &who, &want("", "users", &user, ""))?,
    }
    for group in &groups {
        route::authorize(server, &who, &want("", "groups", group, ""))?;
    }
    const AUTHENTICATION: &str = "authentication.k8s.io";
    if let Some(uid) = &uid {
        route::authorize(server, &who, &want(AUTHENTICATION, "uids", uid, ""))?;
    }
    for (key, value) in &extra {
        let want = Attributes { subresource: key.clone(), ..want(AUTHENTICATION, "userextras", value, "") };
        route::authorize(server, &who, &want)?;
    }
    let mut target = Identity { user: user.clone(), groups, uid: uid.unwrap_or_default(), ..Identity::default() };
    for (key, value) in extra {
        target.extra.entry(key).or_default().push(value);
    }
    if let Some((namespace, _)) = account
        && target.groups.is_empty()
    {
        target.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    Ok(target.authenticated())
}

/// An identity as `authentication.k8s.io` `UserInfo`.
pub fn user_info(who: &Identity) -> Value {
    let mut info = serde_json::json!({"username": who.user, "groups": who.groups});
    if !who.uid.is_empty() {
        info["uid"] = who.uid.clone().into();
    }
    if !who.extra.is_empty() {
        info["extra"] = serde_json::json!(who.extra);
    }
    info
}
