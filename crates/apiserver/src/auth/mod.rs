//! Who is asking, and may they.
//!
//! | module | holds |
//! |---|---|
//! | [`tokens`] | service-account tokens: made, signed, verified |
//! | [`rbac`] | roles and bindings, compiled from the store |
//! | [`roles`] | the roles that every cluster has; aggregated roles |
//! | [`escalation`] | nobody grants what they do not hold |

pub mod escalation;
pub mod rbac;
pub mod roles;
pub mod tokens;

use std::collections::BTreeMap;

/// Who is asking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User name.
    pub user: String,
    /// Groups, without those every user is in.
    pub groups: Vec<String>,
    /// Unique id; empty for certificates.
    pub uid: String,
    /// What else the authenticator knows, such as the pod a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// The group whose members may do everything.
pub const MASTERS: &str = "system:masters";
/// The group of everyone who proved who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of everyone else.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user name of everyone else.
pub const ANONYMOUS: &str = "system:anonymous";

impl Identity {
    /// A user in some groups.
    pub fn new(user: &str, groups: &[&str]) -> Self {
        Self { user: user.to_owned(), groups: groups.iter().map(|g| (*g).to_owned()).collect(), ..Self::default() }
    }

    /// A component of this process that may do everything.
    pub fn internal(user: &str) -> Self {
        Self::new(user, &[MASTERS])
    }

    /// Someone who did not say who they are.
    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS, &[UNAUTHENTICATED])
    }

    /// Whether this is someone who did not say who they are.
    pub fn is_anonymous(&self) -> bool {
        self.user == ANONYMOUS
    }

    /// Whether every request is allowed.
    pub fn is_master(&self) -> bool {
        self.groups.iter().any(|g| g == MASTERS)
    }

    /// Adds the group of everyone who proved who they are.
    pub fn authenticated(mut self) -> Self {
        if !self.is_anonymous() && !self.groups.iter().any(|g| g == AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }
}
