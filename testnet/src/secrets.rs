//! Looks for secrets where none may be: in every byte of files and texts, in the forms in which a secret gets out by
//! mistake.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

/// Bytes of a form that are looked up at once; no form is shorter.
const KEY: usize = 8;
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Where a secret was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which secret.
    pub secret: String,
    /// In which form.
    pub form: &'static str,
    /// In which file or text.
    pub place: String,
    /// At which byte.
    pub offset: usize,
}

struct Form {
    secret: String,
    form: &'static str,
    bytes: Vec<u8>,
}

/// Secrets to look for, each in all its forms.
#[derive(Default)]
pub struct Secrets {
    forms: Vec<Form>,
    /// Which forms begin with these bytes.
    by_start: HashMap<[u8; KEY], Vec<usize>>,
}

impl Secrets {
    /// Adds a secret of at least 8 bytes: as it is, backwards (the other byte order), in hex, in base64 wherever it
    /// begins in what is encoded, and as a list of numbers, which is how Rust prints bytes.
    pub fn add(&mut self, name: &str, secret: &[u8]) {
        let mut backwards = secret.to_vec();
        backwards.reverse();
        for (bytes, words) in [
            (secret, ["raw", "hex", "HEX", "base64", "base64url", "list"]),
            (
                &backwards,
                [
                    "raw, backwards",
                    "hex, backwards",
                    "HEX, backwards",
                    "base64, backwards",
                    "base64url, backwards",
                    "list, backwards",
                ],
            ),
        ] {
            let [raw, hex, upper, base64, url, list] = words;
            self.put(name, raw, bytes.to_vec());
            self.put(name, hex, hex::encode(bytes).into_bytes());
            self.put(name, upper, hex::encode_upper(bytes).into_bytes());
            for skip in 0..3 {
                let text = base64_of(bytes, skip);
                let for_urls = text.iter().map(|digit| match digit {
                    b'+' => b'-',
                    b'/' => b'_',
                    other => *other,
                });
                self.put(name, url, for_urls.collect());
                self.put(name, base64, text);
            }
            let numbers: Vec<_> = bytes.iter().map(u8::to_string).collect();
            self.put(name, list, numbers.join(", ").into_bytes());
        }
    }

    /// Adds a secret that is a text, such as a passphrase.
    pub fn add_text(&mut self, name: &str, secret: &str) {
        self.add(name, secret.as_bytes());
    }

    /// How many forms are looked for.
    pub fn forms(&self) -> usize {
        self.forms.len()
    }

    fn put(&mut self, secret: &str, form: &'static str, bytes: Vec<u8>) {
        // A form that is too short would be found anywhere.
        let Some(start) = bytes.first_chunk::<KEY>().copied() else {
            return;
        };
        self.by_start
            .entry(start)
            .or_default()
            .push(self.forms.len());
        self.forms.push(Form {
            secret: secret.to_owned(),
            form,
            bytes,
        });
    }

    /// All secrets in some bytes.
    pub fn find(&self, place: &str, bytes: &[u8]) -> Vec<Finding> {
        let mut found = Vec::new();
        for (offset, window) in bytes.windows(KEY).enumerate() {
            let Some(forms) = window
                .first_chunk::<KEY>()
                .and_then(|start| self.by_start.get(start))
            else {
                continue;
            };
            let rest = bytes.get(offset..).unwrap_or_default();
            for form in forms.iter().filter_map(|index| self.forms.get(*index)) {
                if rest.starts_with(&form.bytes) {
                    found.push(Finding {
                        secret: form.secret.clone(),
                        form: form.form,
                        place: place.to_owned(),
                        offset,
                    });
                }
            }
        }
        found
    }

    /// All secrets in the files of a folder and the folders in it, but those that `may_hold` is true for. Gives the
    /// number of files too.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn find_in(
        &self,
        folder: &Path,
        may_hold: &impl Fn(&Path) -> bool,
    ) -> std::io::Result<(usize, Vec<Finding>)> {
        let (mut files, mut found) = (0_usize, Vec::new());
        let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                let (path, kind) = (entry.path(), entry.file_type()?);
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_file() && !may_hold(&path) {
                    files = files.saturating_add(1);
                    found.extend(self.find(&path.display().to_string(), &fs::read(&path)?));
                }
            }
        }
        Ok((files, found))
    }
}

/// The base64 digits that `bytes` alone decides when they begin `skip` bytes into what is encoded.
fn base64_of(bytes: &[u8], skip: usize) -> Vec<u8> {
    let mut padded = vec![0; skip];
    padded.extend_from_slice(bytes);
    let bits: Vec<bool> = padded
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1))
        .collect();
    let digits = bits.chunks_exact(6).filter_map(|six| {
        let value = six
            .iter()
            .fold(0_usize, |sum, bit| sum << 1 | usize::from(*bit));
        BASE64.get(value).copied()
    });
    // Digits that hold bits of the bytes before them.
    let shared = (skip * 8).div_ceil(6);
    digits.skip(shared).collect()
}

#[cfg(test)]
mod tests {
    use bitcoin::base64::{Engine as _, engine::general_purpose};

    use super::*;

    const SECRET: [u8; 32] = [
        0x9f, 0xfb, 0xef, 0x01, 0x80, 0x7e, 0x3c, 0xff, 0x10, 0x20, 0x33, 0x44, 0x05, 0x66, 0xf7,
        0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xfe, 0x12, 0x23, 0x34, 0x45, 0x56, 0x67, 0x78,
        0x89, 0x9a,
    ];

    fn secrets() -> Secrets {
        let mut secrets = Secrets::default();
        secrets.add("scalar", &SECRET);
        secrets.add_text("passphrase", "correct horse battery");
        secrets
    }

    fn planted(text: &[u8]) -> Vec<&'static str> {
        let bytes = [b"before ".as_slice(), text, b" after"].concat();
        let found = secrets().find("here", &bytes);
        assert!(found.iter().all(|finding| finding.place == "here"));
        found.iter().map(|finding| finding.form).collect()
    }

    #[test]
    fn a_planted_secret_is_found_in_every_form() {
        let mut backwards = SECRET;
        backwards.reverse();
        assert_eq!(planted(&SECRET), ["raw"]);
        assert_eq!(planted(&backwards), ["raw, backwards"]);
        assert_eq!(planted(hex::encode(SECRET).as_bytes()), ["hex"]);
        assert_eq!(
            planted(hex::encode_upper(backwards).as_bytes()),
            ["HEX, backwards"]
        );
        assert_eq!(planted(format!("{SECRET:?}").as_bytes()), ["list"]);
        assert_eq!(planted(b"correct horse battery"), ["raw"]);
        for skip in 0..3 {
            let mut encoded = vec![7; skip];
            encoded.extend_from_slice(&SECRET);
            encoded.extend_from_slice(&[9; 5]);
            let text = general_purpose::STANDARD.encode(&encoded);
            assert!(planted(text.as_bytes()).contains(&"base64"), "{skip}");
            let text = general_purpose::URL_SAFE.encode(&encoded);
            assert!(planted(text.as_bytes()).contains(&"base64url"), "{skip}");
        }
    }

    #[test]
    fn what_is_no_secret_is_not_found() {
        let mut other = SECRET;
        other[31] ^= 1;
        for text in [
            &other[..],
            &SECRET[..31],
            hex::encode(other).as_bytes(),
            b"",
        ] {
            assert!(planted(text).is_empty());
        }
    }

    #[test]
    fn a_secret_in_a_file_deep_down_is_found_and_a_file_that_may_hold_it_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("log"), format!("key={}\n", hex::encode(SECRET))).unwrap();
        fs::write(dir.path().join("identity"), SECRET).unwrap();
        let (files, found) = secrets()
            .find_in(dir.path(), &|path: &Path| path.ends_with("identity"))
            .unwrap();
        assert_eq!(files, 1);
        assert_eq!(found.len(), 1);
        assert!(found[0].place.ends_with("a/b/log"));
        assert_eq!((found[0].offset, found[0].form), (4, "hex"));
        let (files, found) = secrets().find_in(dir.path(), &|_: &Path| false).unwrap();
        assert_eq!((files, found.len()), (2, 2));
    }
}
