//! IP addresses in Services and endpoints.

use std::net::IpAddr;

use mycelium_api::field::{FieldError, Path};

use crate::Errors;

/// Reads an address as the API does: leading zeros in IPv4 parts are tolerated.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let parts: Vec<u8> = text
        .split('.')
        .map(|part| {
            let digits = !part.is_empty() && part.len() <= 6 && part.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| part.parse().ok()).flatten()
        })
        .collect::<Option<_>>()?;
    let octets: [u8; 4] = parts.try_into().ok()?;
    Some(IpAddr::from(octets))
}

/// An address, of whatever kind.
pub fn check_ip(text: &str, path: &Path, errors: &mut Errors) -> bool {
    let valid = parse_ip(text).is_some();
    if !valid {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(FieldError::invalid(path, text, detail));
    }
    valid
}

/// A network in CIDR notation.
pub fn check_cidr(text: &str, path: &Path, errors: &mut Errors) {
    if text.parse::<ipnet::IpNet>().is_err() {
        let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        errors.push(FieldError::invalid(path, text, detail));
    }
}

/// An address that can be behind a Service: not unspecified, loopback or link-local.
pub fn check_endpoint_ip(text: &str, path: &Path, errors: &mut Errors) {
    let Some(ip) = parse_ip(text) else {
        errors.push(FieldError::invalid(path, text, "must be a valid IP address"));
        return;
    };
    let mut refuse = |detail: String| errors.push(FieldError::invalid(path, text, detail));
    if ip.is_unspecified() {
        refuse(format!("may not be unspecified ({text})"));
    }
    if ip.is_loopback() {
        refuse("may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned());
    }
    let (link_local, link_local_multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.segments()[0] & 0xffc0 == 0xfe80, ip.segments()[0] & 0xff0f == 0xff02),
    };
    if link_local {
        refuse("may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned());
    }
    if link_local_multicast {
        refuse("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned());
    }
}
