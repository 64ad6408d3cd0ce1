//! What indices of header compression stand for (RFC 7541, 2.3).
//!
//! The first 61 are fixed. The others are fields that a peer had us remember before it learnt that we
//! remember nothing: [`Table`] keeps them for that short time.

use std::collections::VecDeque;

use crate::frames::state::{Reader, StateError, ensure, put_u16};

/// Entries of the fixed table, by index less one.
#[rustfmt::skip]
const FIXED: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"),
    (":path", "/index.html"), (":scheme", "http"), (":scheme", "https"), (":status", "200"),
    (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"),
    (":status", "404"), (":status", "500"), ("accept-charset", ""), ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""), ("accept-ranges", ""), ("accept", ""), ("access-control-allow-origin", ""),
    ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""),
    ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""),
    ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""),
    ("link", ""), ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""),
    ("proxy-authorization", ""), ("range", ""), ("referer", ""), ("refresh", ""),
    ("retry-after", ""), ("server", ""), ("set-cookie", ""), ("strict-transport-security", ""),
    ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

/// What an entry costs beside its bytes (RFC 7541, 4.1).
const OVERHEAD: usize = 32;

/// What a field costs a table.
pub(super) fn cost(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + OVERHEAD
}

/// A name and its value.
type Field = (Box<[u8]>, Box<[u8]>);

/// Fields that were remembered, newest first.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: VecDeque<Field>,
    /// Of all entries, as the RFC counts.
    size: usize,
    /// What the peer's encoder keeps to.
    most: usize,
}

impl Table {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            ..Self::default()
        }
    }

    /// The field that an index stands for.
    pub(super) fn field(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let before = index.checked_sub(1)?;
        match FIXED.get(before) {
            Some((name, value)) => Some((name.as_bytes(), value.as_bytes())),
            None => {
                let (name, value) = self.entries.get(before - FIXED.len())?;
                Some((name, value))
            }
        }
    }

    /// Remembers a field, and forgets as many as it takes. One that is larger than the table empties it.
    pub(super) fn remember(&mut self, name: &[u8], value: &[u8]) {
        let cost = cost(name, value);
        self.shrink_to(self.most.saturating_sub(cost));
        if cost <= self.most {
            self.size += cost;
            self.entries.push_front((name.into(), value.into()));
        }
    }

    /// The encoder keeps to another size from now on.
    pub(super) fn limit(&mut self, most: usize) {
        self.most = most;
        self.shrink_to(most);
        if most == 0 {
            self.entries = VecDeque::new();
        }
    }

    pub(super) fn is_new(&self, most: usize) -> bool {
        self.entries.is_empty() && self.most == most
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        // Nothing here is longer than the largest table, 4,096 octets.
        put_u16(out, self.most as u16);
        put_u16(out, self.entries.len() as u16);
        for string in self.entries.iter().flat_map(|(name, value)| [name, value]) {
            put_u16(out, string.len() as u16);
            out.extend_from_slice(string);
        }
    }

    /// `largest`: what the peer was allowed.
    pub(super) fn restore(largest: usize, from: &mut Reader<'_>) -> Result<Self, StateError> {
        let mut table = Self::new(from.u16()?.into());
        ensure(
            table.most <= largest,
            "a header table is larger than allowed",
        )?;
        for _ in 0..from.u16()? {
            let name = from.u16().and_then(|n| from.bytes(n.into()))?;
            let value = from.u16().and_then(|n| from.bytes(n.into()))?;
            table.size += cost(name, value);
            ensure(table.size <= table.most, "more in a header table than fits")?;
            table.entries.push_back((name.into(), value.into()));
        }
        Ok(table)
    }

    fn shrink_to(&mut self, size: usize) {
        while self.size > size
            && let Some((name, value)) = self.entries.pop_back()
        {
            self.size -= cost(&name, &value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_entries_stand_where_the_rfc_has_them() {
        let table = Table::new(0);
        for (index, name, value) in [
            (1, ":authority", ""),
            (2, ":method", "GET"),
            (8, ":status", "200"),
            (15, "accept-charset", ""),
            (16, "accept-encoding", "gzip, deflate"),
            (28, "content-length", ""),
            (38, "host", ""),
            (57, "transfer-encoding", ""),
            (61, "www-authenticate", ""),
        ] {
            assert_eq!(
                table.field(index),
                Some((name.as_bytes(), value.as_bytes()))
            );
        }
        assert_eq!(table.field(0), None);
        assert_eq!(table.field(62), None);
        assert_eq!(table.field(usize::MAX), None);
    }

    #[test]
    fn old_fields_make_room_for_new_ones() {
        let mut table = Table::new(100);
        table.remember(b"a", b"1"); // 34 each
        table.remember(b"b", b"2");
        assert_eq!(table.field(62), Some((&b"b"[..], &b"2"[..])));
        assert_eq!(table.field(63), Some((&b"a"[..], &b"1"[..])));
        table.remember(b"c", b"3");
        assert_eq!(table.field(63), Some((&b"b"[..], &b"2"[..])));
        assert_eq!(table.field(64), None);
        table.limit(40);
        assert_eq!(table.field(62), Some((&b"c"[..], &b"3"[..])));
        assert_eq!(table.field(63), None);
        table.remember(b"too long", b"for this small table");
        assert_eq!(table.field(62), None);
        assert_eq!(table.size, 0);
    }
}
