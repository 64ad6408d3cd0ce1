//! Traffic secrets, and what is derived from them. The only file that touches keys.
//!
//! A secret enters once, from the handshake or from a [`super::State`]; a [`Key`] leaves, which seals or
//! opens one record at a given number. Whatever holds secret bytes here is overwritten when it is
//! dropped; the cipher's own key schedule is overwritten by the cryptography library.

use std::{
    fmt,
    hint::black_box,
    ops::{Deref, DerefMut},
};

use aws_lc_rs::{
    aead::{self, Aad, LessSafeKey, Nonce, UnboundKey},
    error::Unspecified,
    hkdf,
};

use super::{HEAD, RecordError, TAG};

/// The longest secret: one output of SHA-384.
const LONGEST: usize = 48;

/// A cipher suite of TLS 1.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// `TLS_AES_128_GCM_SHA256`
    Aes128Gcm,
    /// `TLS_AES_256_GCM_SHA384`
    Aes256Gcm,
}

impl Suite {
    /// Records sealed with one key before it is changed. RFC 8446, 5.5 allows 2^24.5 full ones, at
    /// which an attacker's advantage is 2^-57; it falls with the square, so that this figure, 64 GiB in
    /// full records, leaves 2^-62. A key update costs some microseconds.
    pub const RECORDS: u64 = 1 << 22;

    /// Length of a traffic secret, in bytes.
    pub fn secret_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 32,
            Self::Aes256Gcm => LONGEST,
        }
    }

    fn cipher(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128Gcm => &aead::AES_128_GCM,
            Self::Aes256Gcm => &aead::AES_256_GCM,
        }
    }

    fn hkdf(self) -> hkdf::Algorithm {
        match self {
            Self::Aes128Gcm => hkdf::HKDF_SHA256,
            Self::Aes256Gcm => hkdf::HKDF_SHA384,
        }
    }
}

/// The traffic secret of one direction: whoever has it can read and forge everything in this
/// direction from here on. It cannot be copied, is never printed and is overwritten when dropped.
pub struct Secret {
    suite: Suite,
    /// On the heap, so that moving a secret leaves no copy behind.
    bytes: Box<Wiped<LONGEST>>,
}

impl Secret {
    /// A secret from the key schedule of a handshake.
    ///
    /// # Errors
    /// When the length is not that of the suite's hash.
    pub fn new(suite: Suite, bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() != suite.secret_len() {
            return Err(RecordError::Secret(bytes.len()));
        }
        let mut secret = Self {
            suite,
            bytes: Box::new(Wiped::new()),
        };
        secret.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(secret)
    }

    /// The secret after this one (RFC 8446, 7.2). The way back does not exist.
    ///
    /// # Errors
    /// [`RecordError::Crypto`].
    pub fn next(&self) -> Result<Self, RecordError> {
        let mut next = Self {
            suite: self.suite,
            bytes: Box::new(Wiped::new()),
        };
        let len = self.suite.secret_len();
        self.expand(b"traffic upd", &mut next.bytes[..len])?;
        Ok(next)
    }

    /// What it is for.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The bytes, for [`super::State`].
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.suite.secret_len()]
    }

    /// HKDF-Expand-Label with an empty context (RFC 8446, 7.1).
    fn expand(&self, label: &[u8], out: &mut [u8]) -> Result<(), RecordError> {
        const PREFIX: &[u8] = b"tls13 ";
        // Lengths are those of labels and keys in this file, all far below 256.
        let length = [0, out.len() as u8];
        let label_length = [(PREFIX.len() + label.len()) as u8];
        let info: [&[u8]; 5] = [&length, &label_length, PREFIX, label, &[0]];
        let prk = hkdf::Prk::new_less_safe(self.suite.hkdf(), self.bytes());
        prk.expand(&info, Length(out.len()))
            .and_then(|okm| okm.fill(out))
            .map_err(|Unspecified| RecordError::Crypto)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({:?})", self.suite)
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Seals and opens records of one direction under one traffic secret.
pub(super) struct Key {
    cipher: LessSafeKey,
    iv: Wiped<{ aead::NONCE_LEN }>,
}

impl Key {
    pub(super) fn of(secret: &Secret) -> Result<Self, RecordError> {
        let cipher = secret.suite.cipher();
        let mut key = Wiped::<32>::new();
        let key = &mut key[..cipher.key_len()];
        secret.expand(b"key", key)?;
        let mut iv = Wiped::new();
        secret.expand(b"iv", &mut *iv)?;
        let unbound = UnboundKey::new(cipher, key).map_err(|Unspecified| RecordError::Crypto)?;
        Ok(Self {
            cipher: LessSafeKey::new(unbound),
            iv,
        })
    }

    /// Encrypts in place and gives the tag. A number must be used once under one key: the callers
    /// count, and nobody can copy a [`super::Sealer`].
    pub(super) fn seal(
        &self,
        number: u64,
        head: [u8; HEAD],
        plain: &mut [u8],
    ) -> Result<aead::Tag, RecordError> {
        self.cipher
            .seal_in_place_separate_tag(self.nonce(number), Aad::from(head), plain)
            .map_err(|Unspecified| RecordError::Crypto)
    }

    /// Decrypts in place what stands before the tag, and gives its length.
    pub(super) fn open(
        &self,
        number: u64,
        head: [u8; HEAD],
        sealed: &mut [u8],
    ) -> Result<usize, RecordError> {
        let (text, tag) = sealed
            .split_last_chunk_mut::<TAG>()
            .ok_or(RecordError::Tag)?;
        self.cipher
            .open_in_place_separate_tag(self.nonce(number), Aad::from(head), &*tag, text)
            .map(|plain| plain.len())
            .map_err(|Unspecified| RecordError::Tag)
    }

    /// RFC 8446, 5.3.
    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = *self.iv;
        for (byte, n) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= n;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Bytes that are overwritten when dropped. The optimiser must take them for read afterwards, so
/// that it cannot leave the writing out.
struct Wiped<const N: usize>([u8; N]);

impl<const N: usize> Wiped<N> {
    fn new() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> Deref for Wiped<N> {
    type Target = [u8; N];

    fn deref(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> DerefMut for Wiped<N> {
    fn deref_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }
}

impl<const N: usize> Drop for Wiped<N> {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Overwrites bytes that were secret.
pub(crate) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    black_box(bytes);
}
