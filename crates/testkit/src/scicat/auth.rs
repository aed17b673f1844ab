//! Login and tokens. A token that is not valid makes a caller anonymous; nothing ever says that it expired.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::reply::{Answer, Reply};
use super::state::{Request, State, iso};

impl State {
    pub(super) fn login(&mut self, request: &Request) -> Answer {
        let word = |name: &str| request.body.get(name).and_then(Value::as_str).unwrap_or_default();
        if word("username") != self.username || word("password") != self.password.expose_secret() {
            return Err(Reply::unauthorized());
        }
        let now = Timestamp::now();
        let life = SignedDuration::try_from(self.token_life).unwrap_or(SignedDuration::MAX);
        let expiry = now.saturating_add(life).unwrap_or(Timestamp::MAX);
        let token = self.token(now, expiry);
        self.tokens.insert(token.clone(), expiry);
        let seconds = self.token_life.as_secs();
        Ok(Reply::created(json!({
            "access_token": token,
            "id": token,
            "expires_in": seconds,
            "ttl": seconds,
            "created": iso(now),
            "userId": self.user_id,
            "user": self.user(),
        })))
    }

    /// The account if the token is valid, else 200 with an empty body.
    pub(super) fn whoami(&mut self, request: &Request) -> Reply {
        if self.is_valid(request) { Reply::ok(self.user()) } else { Reply::empty() }
    }

    pub(super) fn logout(&mut self, request: &Request) -> Reply {
        if let Some(token) = &request.token {
            self.tokens.remove(token);
        }
        Reply::ok(json!({"logout": "successful"}))
    }

    pub(super) fn is_valid(&self, request: &Request) -> bool {
        let expiry = request.token.as_ref().and_then(|token| self.tokens.get(token));
        expiry.is_some_and(|expiry| Timestamp::now() < *expiry)
    }

    fn user(&self) -> Value {
        json!({
            "_id": self.user_id,
            "username": self.username,
            "email": format!("{}@scicat.project", self.username),
            "authStrategy": "local",
            "__v": 0,
            "id": self.user_id,
        })
    }

    /// A token of the usual form, so that clients may look into it; its signature is only unique.
    fn token(&self, now: Timestamp, expiry: Timestamp) -> String {
        let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let header = encode(&json!({"alg": "HS256", "typ": "JWT"}));
        let claims = json!({
            "_id": self.user_id,
            "username": self.username,
            "iat": now.as_second(),
            "exp": expiry.as_second(),
        });
        let signature = BASE64_URL_SAFE_NO_PAD.encode(uuid::Uuid::new_v4().as_bytes());
        format!("{header}.{}.{signature}", encode(&claims))
    }
}
