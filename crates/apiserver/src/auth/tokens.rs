//! Service-account tokens: JSON web tokens signed with ES256, bound to an audience, a time and optionally an object.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use mycelium_api::env::Env;
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The issuer, and the audience of the API server itself.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The object a token is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Its name.
    pub name: String,
    /// Its uid; empty when unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The private part of the claims.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Namespace of the service account.
    pub namespace: String,
    /// The node of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<ObjectRef>,
    /// The pod the token is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<ObjectRef>,
    /// The secret the token is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<ObjectRef>,
    /// The service account.
    pub serviceaccount: ObjectRef,
}

/// Claims of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Audiences.
    pub aud: Vec<String>,
    /// End, seconds since the epoch.
    pub exp: i64,
    /// Issue time.
    pub iat: i64,
    /// Issuer.
    pub iss: String,
    /// Token id.
    pub jti: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    /// Start.
    pub nbf: i64,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub sub: String,
}

/// Signs and verifies.
#[derive(Clone)]
pub struct Tokens {
    env: Env,
    encoding: EncodingKey,
    decoding: DecodingKey,
    public_point: Vec<u8>,
    verified: Arc<Mutex<BTreeMap<String, Claims>>>,
}

/// Signatures that were checked; checking one costs more than the rest of a request.
const VERIFIED_MAX: usize = 512;

/// Why a token could not be signed, or is not one of ours.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The library refused the key, or the signature does not match.
    #[error("invalid bearer token")]
    Jwt(#[from] jsonwebtoken::errors::Error),
    /// The token is not valid now.
    #[error("token has expired")]
    Expired,
    /// Somebody else's token.
    #[error("token was issued by someone else")]
    Issuer,
}

impl Tokens {
    /// Signs with a P-256 key.
    pub fn new(env: Env, key: &KeyPair) -> Result<Self, TokenError> {
        Ok(Self {
            env,
            encoding: EncodingKey::from_ec_der(key.serialized_der()),
            decoding: DecodingKey::from_ec_der(key.public_key_raw()),
            public_point: key.public_key_raw().to_vec(),
            verified: Arc::default(),
        })
    }

    /// Makes a token for `seconds`.
    pub fn issue(&self, audiences: &[String], seconds: i64, bound: Bound) -> Result<(String, Claims), TokenError> {
        let now = self.env.now().as_second();
        let audiences = if audiences.is_empty() { vec![ISSUER.to_owned()] } else { audiences.to_vec() };
        let claims = Claims {
            aud: audiences,
            exp: now + seconds,
            iat: now,
            iss: ISSUER.to_owned(),
            jti: self.env.uuid(),
            sub: format!("system:serviceaccount:{}:{}", bound.namespace, bound.serviceaccount.name),
            nbf: now,
            bound,
        };
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id());
        Ok((jsonwebtoken::encode(&header, &claims, &self.encoding)?, claims))
    }

    /// Checks signature, issuer and time. Audience and the objects it names are the caller's to check.
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        let known = self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(token).cloned();
        let claims = match known {
            Some(claims) => claims,
            None => self.check_signature(token)?,
        };
        let now = self.env.now().as_second();
        if now >= claims.exp || now + 60 < claims.nbf { Err(TokenError::Expired) } else { Ok(claims) }
    }

    fn check_signature(&self, token: &str) -> Result<Claims, TokenError> {
        let mut validation = Validation::new(Algorithm::ES256);
        // The library would read the machine's clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let claims: Claims = jsonwebtoken::decode(token, &self.decoding, &validation)?.claims;
        if claims.iss != ISSUER {
            return Err(TokenError::Issuer);
        }
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= VERIFIED_MAX {
            verified.clear();
        }
        verified.insert(token.to_owned(), claims.clone());
        Ok(claims)
    }

    fn key_id(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.public_point.get(1..25).unwrap_or_default())
    }

    /// The JSON web key set, with which others verify our tokens.
    pub fn key_set(&self) -> Value {
        let half =
            |range| URL_SAFE_NO_PAD.encode(self.public_point.get::<std::ops::Range<usize>>(range).unwrap_or_default());
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.key_id(), "crv": "P-256", "alg": "ES256",
            "x": half(1..33), "y": half(33..65)}]})
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use jiff::Timestamp;

    use super::*;

    #[test]
    fn tokens_hold_for_their_time_and_key_only() {
        let clock = Arc::new(AtomicI64::new(1_000));
        let seen = clock.clone();
        let env = Env::new(move || Timestamp::from_second(seen.load(Ordering::Relaxed)).expect("in range"), || 7);
        let key = KeyPair::generate().expect("a key");
        let tokens = Tokens::new(env.clone(), &key).expect("a signer");
        let bound = Bound {
            namespace: "a".into(),
            serviceaccount: ObjectRef { name: "b".into(), uid: "u".into() },
            ..Bound::default()
        };
        let (token, claims) = tokens.issue(&[], 600, bound).expect("signs");
        assert_eq!(tokens.verify(&token).expect("valid"), claims);
        assert_eq!(claims.sub, "system:serviceaccount:a:b");
        let other = Tokens::new(env, &KeyPair::generate().expect("a key")).expect("a signer");
        assert!(other.verify(&token).is_err());
        clock.store(1_600, Ordering::Relaxed);
        assert!(matches!(tokens.verify(&token), Err(TokenError::Expired)));
        assert!(tokens.verify("not.a.token").is_err());
    }
}
