//! Finds fields that this version does not know.
//!
//! A policy's encoding enters, whether everything in it is understood leaves. Decoding drops what
//! it does not know, which for most messages is what one wants; a policy may not lose a condition
//! that way: "from this address, and only over that" would be read as "from this address".

use crate::wire::{Content, Cursor};

/// A message: its fields, and for those that are messages themselves, their shape.
struct Shape(&'static [(u32, Option<&'static Shape>)]);

static LEAF_2: Shape = Shape(&[(1, None), (2, None)]);
static STRING_MATCH: Shape = Shape(&[(1, None), (2, None), (3, None), (4, None)]);
static MATCH: Shape = Shape(&[
    (1, Some(&STRING_MATCH)),
    (2, Some(&STRING_MATCH)),
    (3, Some(&STRING_MATCH)),
    (4, Some(&STRING_MATCH)),
    (5, Some(&LEAF_2)),
    (6, Some(&LEAF_2)),
    (7, Some(&LEAF_2)),
    (8, Some(&LEAF_2)),
    (9, None),
    (10, None),
    (11, Some(&LEAF_2)),
    (12, Some(&LEAF_2)),
    (13, None), // extensions: seen after decoding
]);
static RULES: Shape = Shape(&[(2, Some(&MATCH))]);
static GROUP: Shape = Shape(&[(1, Some(&RULES))]);
static AUTHORIZATION: Shape = Shape(&[
    (1, None),
    (2, None),
    (3, None),
    (4, None),
    (5, Some(&GROUP)),
    (6, None),
    (7, None),
]);

/// Whether every field of an encoded `istio.security.Authorization` is known here.
pub(crate) fn policy_is_understood(encoded: &[u8]) -> bool {
    understood(&AUTHORIZATION, encoded).is_some()
}

/// `None` at the first unknown field, or where the encoding ends too early.
fn understood(shape: &Shape, encoded: &[u8]) -> Option<()> {
    let mut cursor = Cursor::new(encoded);
    while let Some((number, content)) = cursor.field().ok()? {
        let (_, nested) = shape.0.iter().find(|(field, _)| *field == number)?;
        if let (Some(nested), Content::Bytes(content)) = (nested, content) {
            understood(nested, content)?;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use api::security as wire;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn policy() -> wire::Authorization {
        let text = wire::StringMatch {
            match_type: Some(wire::string_match::MatchType::Presence(())),
        };
        let address = wire::Address {
            address: vec![10, 0, 0, 0].into(),
            length: 8,
        };
        let account = wire::ServiceAccountMatch {
            namespace: "ns".to_owned(),
            service_account: "sa".to_owned(),
        };
        let all = wire::Match {
            namespaces: vec![text.clone()],
            not_namespaces: vec![text.clone()],
            principals: vec![text.clone()],
            not_principals: vec![text],
            source_ips: vec![address.clone()],
            not_source_ips: vec![address.clone()],
            destination_ips: vec![address.clone()],
            not_destination_ips: vec![address],
            destination_ports: vec![80, 65535],
            not_destination_ports: vec![443],
            service_accounts: vec![account.clone()],
            not_service_accounts: vec![account],
            extensions: vec![Default::default()],
        };
        wire::Authorization {
            name: "p".to_owned(),
            namespace: "ns".to_owned(),
            scope: 1,
            action: 1,
            groups: vec![wire::Group {
                rules: vec![wire::Rules { matches: vec![all] }],
            }],
            dry_run: true,
            extensions: vec![Default::default()],
        }
    }

    /// `content` as field `number` of a message.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8], content].concat()
    }

    #[test]
    fn every_field_of_today_is_known() {
        assert!(policy_is_understood(&policy().encode_to_vec()));
        assert!(policy_is_understood(&[]));
    }

    #[test]
    fn a_field_of_tomorrow_is_noticed_at_every_depth() {
        let tomorrow = field(15, b"only over that");
        let mut nested = tomorrow.clone();
        assert!(!policy_is_understood(&nested), "policy");
        for (depth, number) in [("group", 5), ("rules", 1), ("match", 2), ("text", 3)]
            .iter()
            .rev()
        {
            let path: Vec<u8> = [5, 1, 2, 3]
                .into_iter()
                .take_while(|at| at != number)
                .chain([*number])
                .collect();
            nested = path
                .iter()
                .rev()
                .fold(tomorrow.clone(), |content, number| field(*number, &content));
            assert!(!policy_is_understood(&nested), "{depth}");
        }
        let whole = [policy().encode_to_vec(), nested].concat();
        assert!(
            wire::Authorization::decode(&*whole).is_ok(),
            "decoding does not notice"
        );
        assert!(!policy_is_understood(&whole));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = policy_is_understood(&bytes);
        }
    }
}
