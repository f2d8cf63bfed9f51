//! `export-ledger`: the operator's own ledger as one JSON document.

use std::path::Path;

use node::files;
use operator::{
    admin::{self, AdminError, Request},
    export,
};
use serde_json::json;

use super::{Own, Reply};

pub(super) fn export_ledger(own: &Own, file: &Path) -> anyhow::Result<Reply> {
    let socket = own.load()?.data_dir.join(admin::SOCKET);
    let export = export::collect(|from| {
        let page = admin::ask(&socket, &Request::Ledger { from })?;
        serde_json::from_value(page).map_err(|_| AdminError::Reply)
    })?;
    let mut bytes = serde_json::to_vec_pretty(&export)?;
    bytes.push(b'\n');
    files::write_new(file, &bytes)?;
    let (count, digest) = (export.accounts.len(), hex::encode(export.digest));
    let checked = match export.txid {
        Some(txid) => format!(
            "The accounts were hashed anew: they give digest and supply in the OP_RETURN of {txid}, which this \
             operator's own node has in its best chain."
        ),
        None => "The accounts were hashed anew: they give the digest of the empty ledger, as no batch has confirmed."
            .to_owned(),
    };
    Ok(Reply {
        text: format!(
            "{}: {count} accounts, supply {} sat, after batch {}\ndigest {digest}\n{checked}",
            file.display(),
            export.supply_sat,
            export.sequence
        ),
        json: json!({
            "file": file.display().to_string(),
            "format": export.format,
            "accounts": count,
            "supply_sat": export.supply_sat,
            "sequence": export.sequence,
            "txid": export.txid,
            "digest": digest,
            "checked": checked,
        }),
    })
}
