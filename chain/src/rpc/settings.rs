//! How to reach bitcoind: the settings file's section, checked.

use std::fmt;
use std::path::PathBuf;

use reqwest::Url;
use serde::{Deserialize, Serialize};

/// Where bitcoind listens and how to log in: with its cookie file, or with a user and a password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RpcSettings {
    /// `http://host:port`. No TLS: bitcoind offers none, so keep it on this host or in a tunnel.
    pub url: String,
    /// The `.cookie` file that bitcoind writes into its data folder at every start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie_file: Option<PathBuf>,
    /// User of `rpcauth` or `rpcuser`, instead of a cookie file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The address is no URL.
    #[error("bitcoind's url '{url}' is not a URL")]
    Url {
        /// As configured.
        url: String,
    },
    /// TLS or another protocol.
    #[error("bitcoind's url must begin with http://, not {scheme}://")]
    Scheme {
        /// As configured.
        scheme: String,
    },
    /// A login within the URL would end up in logs.
    #[error("put bitcoind's login into 'user' and 'password', not into its url")]
    LoginInUrl,
    /// None, half of one, or two ways to log in.
    #[error("bitcoind needs either 'cookie_file', or both 'user' and 'password'")]
    Login,
    /// The HTTP client could not be built.
    #[error("the HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
}

/// One way to log in, taken from settings that were checked.
#[derive(Clone)]
pub(super) enum Login {
    Cookie(PathBuf),
    Password { user: String, password: String },
}

impl RpcSettings {
    /// Settings that log in with a cookie file.
    pub fn with_cookie(url: impl Into<String>, cookie_file: impl Into<PathBuf>) -> Self {
        Self {
            url: url.into(),
            cookie_file: Some(cookie_file.into()),
            user: None,
            password: None,
        }
    }

    /// Settings that log in with a user and a password.
    pub fn with_password(
        url: impl Into<String>,
        user: impl Into<String>,
        password: impl Into<String>,
    ) -> Self {
        Self {
            url: url.into(),
            cookie_file: None,
            user: Some(user.into()),
            password: Some(password.into()),
        }
    }

    pub(super) fn checked(&self) -> Result<(Url, Login), SettingsError> {
        let url = Url::parse(&self.url).map_err(|_| SettingsError::Url {
            url: self.url.clone(),
        })?;
        if url.scheme() != "http" {
            return Err(SettingsError::Scheme {
                scheme: url.scheme().to_owned(),
            });
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(SettingsError::LoginInUrl);
        }
        let login = match (&self.cookie_file, &self.user, &self.password) {
            (Some(path), None, None) => Login::Cookie(path.clone()),
            (None, Some(user), Some(password)) => Login::Password {
                user: user.clone(),
                password: password.clone(),
            },
            _ => return Err(SettingsError::Login),
        };
        Ok((url, login))
    }
}

impl fmt::Debug for RpcSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcSettings")
            .field("url", &self.url)
            .field("cookie_file", &self.cookie_file)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "(hidden)"))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_a_cookie_or_a_password_and_nothing_else() {
        let cookie = RpcSettings::with_cookie("http://127.0.0.1:8332", "/x/.cookie");
        assert!(cookie.checked().is_ok());
        let password = RpcSettings::with_password("http://127.0.0.1:8332", "u", "p");
        assert!(password.checked().is_ok());
        let mut both = password.clone();
        both.cookie_file = cookie.cookie_file.clone();
        assert!(matches!(both.checked(), Err(SettingsError::Login)));
        let mut half = password;
        half.password = None;
        assert!(matches!(half.checked(), Err(SettingsError::Login)));
    }

    #[test]
    fn a_url_is_plain_http_without_a_login() {
        for (url, wanted) in [
            ("not a url", "not a URL"),
            ("https://127.0.0.1:1", "http://"),
            ("http://u:p@127.0.0.1:1", "not into its url"),
        ] {
            let error = RpcSettings::with_cookie(url, "c").checked().err().unwrap();
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }

    #[test]
    fn an_unknown_field_is_an_error() {
        let text = r#"{"url":"http://127.0.0.1:1","cookie_file":"c","pasword":"p"}"#;
        assert!(serde_json::from_str::<RpcSettings>(text).is_err());
    }

    #[test]
    fn a_password_is_not_printed() {
        let settings = RpcSettings::with_password("http://127.0.0.1:1", "u", "secret-word");
        assert!(!format!("{settings:?}").contains("secret-word"));
    }
}
