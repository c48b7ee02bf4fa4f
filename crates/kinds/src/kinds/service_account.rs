//! ServiceAccount.

use crate::Kind;
use crate::table::{AGE_COLUMN, NAME, age, name};

pub static SERVICE_ACCOUNT: Kind = Kind {
    has_status: false,
    columns: &[NAME, AGE_COLUMN],
    cells: |account, now| vec![name(account), age(account, now)],
    ..Kind::new("", "ServiceAccount", true)
};
