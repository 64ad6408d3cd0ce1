//! Whether a workload's proxy carries UDP: an extension of the workload says so by being there (docs/wire.md "UDP").

use api::UDP_EXTENSION;
use api::workload as wire;

use crate::wire::{Cursor, Unusual};

/// Of decoded extensions.
pub(crate) fn is_said(extensions: &[wire::Extension]) -> bool {
    extensions.iter().any(|it| it.name == UDP_EXTENSION)
}

/// Of an encoded extension.
pub(crate) fn says(extension: &[u8]) -> Result<bool, Unusual> {
    let mut name = "";
    let mut cursor = Cursor::new(extension);
    while let Some((number, content)) = cursor.field()? {
        if number == 1 {
            name = content.text()?;
        }
    }
    Ok(name == UDP_EXTENSION)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn it_is_said_by_name_alone() {
        for (name, expected) in [
            (UDP_EXTENSION, true),
            ("ambit.io/egress", false),
            ("", false),
        ] {
            let extension = wire::Extension {
                name: name.into(),
                config: None,
            };
            assert_eq!(says(&extension.encode_to_vec()), Ok(expected), "{name}");
            assert_eq!(is_said(&[extension]), expected, "{name}");
        }
        assert!(says(&[0x0a, 0xff]).is_err());
    }
}
