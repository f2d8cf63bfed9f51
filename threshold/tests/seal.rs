//! Sealing: only the right passphrase and purpose open a file, and what is wrong is said.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use sha2::{Digest as _, Sha256};
use threshold::seal::{
    Cost, MAX_MEMORY_KIB, MAX_PLAINTEXT, MAX_PURPOSE, SealError, open, seal, seal_at,
};

const SECRET: &[u8] = b"a secret of some length";
/// Where the header keeps these.
const MEMORY: usize = 5;
const PASSES: usize = 9;
const CHECKSUM_LEN: usize = 8;

fn sealed() -> Vec<u8> {
    seal_at(Cost::Fast, SECRET, "correct horse", "key share").unwrap()
}

/// Makes the checksum right again, as somebody would who changes a file on purpose.
fn with_checksum(mut file: Vec<u8>) -> Vec<u8> {
    let end = file.len() - CHECKSUM_LEN;
    let tag = Sha256::digest(b"drawbridge/seal/checksum");
    let mut hasher = Sha256::new();
    hasher.update(tag);
    hasher.update(tag);
    hasher.update(&file[..end]);
    file[end..].copy_from_slice(&hasher.finalize()[..CHECKSUM_LEN]);
    file
}

#[test]
fn the_right_passphrase_opens() {
    assert_eq!(
        *open(&sealed(), "correct horse", "key share").unwrap(),
        SECRET
    );
    let empty = seal_at(Cost::Fast, b"", "", "").unwrap();
    assert!(open(&empty, "", "").unwrap().is_empty());
    let standard = seal(SECRET, "correct horse", "key share").unwrap();
    assert_eq!(
        *open(&standard, "correct horse", "key share").unwrap(),
        SECRET
    );
}

#[test]
fn two_files_of_one_secret_have_nothing_in_common() {
    let (a, b) = (sealed(), sealed());
    let body = a.len() - SECRET.len() - 16 - CHECKSUM_LEN;
    assert_ne!(a[13..53], b[13..53], "salt and nonce");
    assert_ne!(a[body..], b[body..]);
    assert!(!a.windows(SECRET.len()).any(|window| window == SECRET));
}

#[test]
fn a_wrong_passphrase_is_called_that() {
    for wrong in ["", "correct hors", "correct horse ", "Correct horse"] {
        assert_eq!(
            open(&sealed(), wrong, "key share").unwrap_err(),
            SealError::WrongPassphrase
        );
    }
}

#[test]
fn another_purpose_is_refused_by_name() {
    let expected = SealError::Purpose {
        expected: "wallet".into(),
        found: "key share".into(),
    };
    assert_eq!(
        open(&sealed(), "correct horse", "wallet").unwrap_err(),
        expected
    );
    // Renaming the purpose in the header does not help: it is authenticated.
    let mut renamed = sealed();
    let at = renamed
        .windows(9)
        .position(|window| window == b"key share")
        .unwrap();
    renamed[at..at + 9].copy_from_slice(b"wallet   ");
    assert_eq!(
        open(&with_checksum(renamed), "correct horse", "wallet   ").unwrap_err(),
        SealError::WrongPassphrase
    );
}

#[test]
fn a_file_cut_anywhere_is_truncated() {
    let file = sealed();
    for cut in 0..file.len() {
        assert_eq!(
            open(&file[..cut], "correct horse", "key share").unwrap_err(),
            SealError::Truncated,
            "cut at {cut}"
        );
    }
    let mut longer = file;
    longer.push(0);
    assert_eq!(
        open(&longer, "correct horse", "key share").unwrap_err(),
        SealError::Damaged
    );
}

#[test]
fn a_flipped_bit_anywhere_is_found_and_not_taken_for_a_wrong_passphrase() {
    let file = sealed();
    for byte in 0..file.len() {
        for bit in [0, 7] {
            let mut flipped = file.clone();
            flipped[byte] ^= 1 << bit;
            let error = open(&flipped, "correct horse", "key share").unwrap_err();
            assert!(
                matches!(
                    error,
                    SealError::NotSealed
                        | SealError::Version(_)
                        | SealError::Truncated
                        | SealError::Damaged
                ),
                "byte {byte}: {error:?}"
            );
        }
    }
}

#[test]
fn a_change_on_purpose_is_found_too() {
    let file = sealed();
    for byte in PASSES + 4..file.len() - CHECKSUM_LEN {
        let mut changed = file.clone();
        changed[byte] ^= 1;
        assert!(
            open(&with_checksum(changed), "correct horse", "key share").is_err(),
            "byte {byte}"
        );
    }
}

#[test]
fn an_absurd_cost_is_refused_before_it_is_paid() {
    let with = |at: usize, value: u32| {
        let mut file = sealed();
        file[at..at + 4].copy_from_slice(&value.to_le_bytes());
        open(&with_checksum(file), "correct horse", "key share").unwrap_err()
    };
    for memory_kib in [0, 7, MAX_MEMORY_KIB + 1, u32::MAX] {
        assert_eq!(
            with(MEMORY, memory_kib),
            SealError::Cost {
                memory_kib,
                passes: 1
            }
        );
    }
    for passes in [0, 17, u32::MAX] {
        assert_eq!(
            with(PASSES, passes),
            SealError::Cost {
                memory_kib: 64,
                passes
            }
        );
    }
    // Within bounds, but not what it was sealed with.
    assert_eq!(with(MEMORY, 128), SealError::WrongPassphrase);
}

#[test]
fn what_is_too_long_is_not_sealed() {
    let long = vec![0; MAX_PLAINTEXT + 1];
    assert_eq!(
        seal_at(Cost::Fast, &long, "p", "x").unwrap_err(),
        SealError::TooLong
    );
    let purpose = "p".repeat(MAX_PURPOSE + 1);
    assert_eq!(
        seal_at(Cost::Fast, b"", "p", &purpose).unwrap_err(),
        SealError::TooLong
    );
}
