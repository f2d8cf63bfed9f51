//! A node and its attestation helper over a real socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use std::{
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    thread,
};

use attestation::{
    Attest, Claim, MAX_DOCUMENT_BYTES, Verify as _,
    socket::{self, AttestError, Socket},
};
use support::{Enclave, expected, now_ms};

const CLAIM: Claim = Claim {
    key: [7; 32],
    nonce: [8; 32],
};

struct NoPlatform;

impl Attest for NoPlatform {
    fn attest(&self, _: &Claim) -> Result<Vec<u8>, AttestError> {
        Err(AttestError::NoDocument)
    }
}

/// Asks a helper that does with the one connection what `helper` does.
fn ask(helper: impl FnOnce(UnixStream) + Send + 'static) -> Result<Vec<u8>, AttestError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("attest.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let helper = thread::spawn(move || helper(listener.accept().unwrap().0));
    let answer = Socket::new(path).attest(&CLAIM);
    helper.join().unwrap();
    answer
}

#[test]
fn a_document_comes_over_the_socket_whole() {
    let enclave = Enclave::new();
    let requirement = expected(enclave.issued.root());
    let document = ask(move |stream| socket::answer(stream, &enclave).unwrap()).unwrap();
    requirement.verify(&document, &CLAIM, now_ms()).unwrap();
}

#[test]
fn a_helper_that_has_no_document_says_so() {
    let answer = ask(|stream| {
        let told = socket::answer(stream, &NoPlatform);
        assert!(matches!(told, Err(AttestError::NoDocument)));
    });
    assert!(matches!(answer, Err(AttestError::NoDocument)));
}

#[test]
fn a_helper_that_is_not_there_goes_away_or_sends_too_much_is_an_error() {
    let absent = Socket::new(Path::new("/nonexistent/attest.sock").to_owned());
    assert!(matches!(
        absent.attest(&CLAIM),
        Err(AttestError::Connect { .. })
    ));
    let cut = ask(|mut stream| {
        stream.read_exact(&mut [0; 69]).unwrap();
        stream.write_all(&[0, 0, 0, 9, 1, 2]).unwrap();
    });
    assert!(matches!(cut, Err(AttestError::Io(_))));
    let too_much = MAX_DOCUMENT_BYTES + 1;
    let large = ask(move |mut stream| {
        stream.read_exact(&mut [0; 69]).unwrap();
        let length = u32::try_from(too_much).unwrap().to_be_bytes();
        stream.write_all(&length).unwrap();
    });
    assert!(matches!(large, Err(AttestError::TooLarge(bytes)) if bytes == too_much));
}

#[test]
fn a_request_of_another_size_or_version_gets_no_document() {
    for request in [
        [&[0, 0, 0, 64][..], &[1; 64]].concat(),
        [&[0, 0, 0, 65][..], &[2; 65]].concat(),
    ] {
        let (mut node, helper) = UnixStream::pair().unwrap();
        node.write_all(&request).unwrap();
        let told = socket::answer(helper, &Enclave::new());
        assert!(matches!(told, Err(AttestError::Format)));
        // Closed, or reset because not all of the request was read: no byte either way.
        assert!(matches!(node.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
}
