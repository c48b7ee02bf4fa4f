//! Who a container runs as: the pod's wishes, the image's user, and the image's own `passwd` and `group` files.

use k8s_openapi::api::core::v1::{PodSecurityContext, SecurityContext};

/// The user of a container's processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Further groups, sorted.
    pub groups: Vec<u32>,
}

/// Why no user could be determined. The texts are those of the kubelet and of container runtimes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// `runAsNonRoot` with `runAsUser: 0`.
    #[error("container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})")]
    RunAsRoot {
        /// The pod, as the kubelet prints it.
        pod: String,
        /// The container's name.
        container: String,
    },
    /// `runAsNonRoot` with an image of root's.
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    ImageRoot {
        /// The pod.
        pod: String,
        /// The container's name.
        container: String,
    },
    /// `runAsNonRoot` with an image whose user is a name.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root \
         (pod: \"{pod}\", container: {container})"
    )]
    ImageName {
        /// The image's user.
        user: String,
        /// The pod.
        pod: String,
        /// The container's name.
        container: String,
    },
    /// A name that the image's files do not have.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// A group name that the image's files do not have.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
}

/// The files of the image that name users.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// `/etc/passwd`.
    pub passwd: String,
    /// `/etc/group`.
    pub group: String,
}

struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

impl Accounts {
    fn user(&self, matches: impl Fn(&str, u32) -> bool) -> Option<Account> {
        self.passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            matches(name, uid).then(|| Account { name: name.to_owned(), uid, gid })
        })
    }

    fn group_id(&self, name: &str) -> Option<u32> {
        self.groups().find(|(group, _, _)| *group == name).map(|(_, gid, _)| gid)
    }

    fn groups_of<'a>(&'a self, user: &'a str) -> impl Iterator<Item = u32> + 'a {
        self.groups().filter(move |(_, _, members)| members.split(',').any(|m| m == user)).map(|(_, gid, _)| gid)
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?, fields.nth(1)?.parse().ok()?, fields.next().unwrap_or_default()))
        })
    }
}

/// What decides about the user.
pub struct Wishes<'a> {
    /// The pod as the kubelet prints it, for messages.
    pub pod: &'a str,
    /// The container's name, for messages.
    pub container: &'a str,
    /// The pod's security context.
    pub pod_context: Option<&'a PodSecurityContext>,
    /// The container's.
    pub context: Option<&'a SecurityContext>,
    /// The image's user: `name`, `uid`, `name:group`, or empty.
    pub image_user: &'a str,
}

impl Wishes<'_> {
    fn pick<T>(
        &self,
        own: impl Fn(&SecurityContext) -> Option<T>,
        pod: impl Fn(&PodSecurityContext) -> Option<T>,
    ) -> Option<T> {
        self.context.and_then(own).or_else(|| self.pod_context.and_then(pod))
    }
}

/// Determines the user.
pub fn resolve(wishes: &Wishes<'_>, accounts: &Accounts) -> Result<User, UserError> {
    let run_as_user = wishes.pick(|c| c.run_as_user, |p| p.run_as_user);
    let run_as_group = wishes.pick(|c| c.run_as_group, |p| p.run_as_group);
    if wishes.pick(|c| c.run_as_non_root, |p| p.run_as_non_root) == Some(true) {
        refuse_root(wishes, run_as_user)?;
    }
    let (image_name, image_group) = match wishes.image_user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wishes.image_user, None),
    };
    let account = match run_as_user {
        Some(uid) => numbered(accounts, uid as u32),
        None => named(accounts, image_name)?,
    };
    let gid = match (run_as_group, run_as_user, image_group) {
        (Some(gid), _, _) => gid as u32,
        (None, None, Some(group)) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => accounts.group_id(group).ok_or_else(|| UserError::NoGroup(group.to_owned()))?,
        },
        _ => account.gid,
    };
    let mut groups = vec![gid];
    let pod = wishes.pod_context;
    if pod.and_then(|p| p.supplemental_groups_policy.as_deref()) != Some("Strict") && !account.name.is_empty() {
        groups.extend(accounts.groups_of(&account.name));
    }
    groups.extend(pod.and_then(|p| p.supplemental_groups.as_ref()).into_iter().flatten().map(|g| *g as u32));
    groups.extend(pod.and_then(|p| p.fs_group).map(|g| g as u32));
    groups.sort_unstable();
    groups.dedup();
    Ok(User { uid: account.uid, gid, groups })
}

fn numbered(accounts: &Accounts, uid: u32) -> Account {
    accounts.user(|_, id| id == uid).unwrap_or(Account { name: String::new(), uid, gid: 0 })
}

fn named(accounts: &Accounts, name: &str) -> Result<Account, UserError> {
    if name.is_empty() {
        return Ok(numbered(accounts, 0));
    }
    if let Some(account) = accounts.user(|n, _| n == name) {
        return Ok(account);
    }
    name.parse().map(|uid| numbered(accounts, uid)).map_err(|_| UserError::NoUser(name.to_owned()))
}

fn refuse_root(wishes: &Wishes<'_>, run_as_user: Option<i64>) -> Result<(), UserError> {
    let (pod, container) = (wishes.pod.to_owned(), wishes.container.to_owned());
    match run_as_user {
        Some(0) => return Err(UserError::RunAsRoot { pod, container }),
        Some(_) => return Ok(()),
        None => {}
    }
    let user = wishes.image_user.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        Ok(0) => Err(UserError::ImageRoot { pod, container }),
        Ok(_) => Ok(()),
        Err(_) if user.is_empty() => Err(UserError::ImageRoot { pod, container }),
        Err(_) => Err(UserError::ImageName { user: user.to_owned(), pod, container }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:33:44::/:/bin/false\n".into(),
            group: "root:x:0:\nweb:x:44:\nssl:x:55:web,other\n".into(),
        }
    }

    fn user(image_user: &str, pod: PodSecurityContext, own: SecurityContext) -> Result<User, UserError> {
        let wishes = Wishes { pod: "p_n(u)", container: "c", pod_context: Some(&pod), context: Some(&own), image_user };
        resolve(&wishes, &accounts())
    }

    #[test]
    fn users_come_from_the_pod_then_the_image_then_its_files() {
        let plain = SecurityContext::default();
        let cases = [
            ("", PodSecurityContext::default(), Ok(User { uid: 0, gid: 0, groups: vec![0] })),
            ("web", PodSecurityContext::default(), Ok(User { uid: 33, gid: 44, groups: vec![44, 55] })),
            ("web:ssl", PodSecurityContext::default(), Ok(User { uid: 33, gid: 55, groups: vec![55] })),
            ("nobody", PodSecurityContext::default(), Err(UserError::NoUser("nobody".into()))),
            (
                "web",
                PodSecurityContext { run_as_user: Some(1000), fs_group: Some(2000), ..Default::default() },
                Ok(User { uid: 1000, gid: 0, groups: vec![0, 2000] }),
            ),
        ];
        for (image, pod, expected) in cases {
            assert_eq!(user(image, pod, plain.clone()), expected, "{image}");
        }
    }

    #[test]
    fn root_is_refused_with_the_kubelets_words() {
        let own = SecurityContext { run_as_non_root: Some(true), ..Default::default() };
        let text = |image| user(image, PodSecurityContext::default(), own.clone()).map_err(|e| e.to_string());
        assert_eq!(
            text(""),
            Err("container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)".into())
        );
        assert!(text("web").is_err_and(|e| e.contains("image has non-numeric user (web), cannot verify")));
        assert!(text("33").is_ok());
    }
}
