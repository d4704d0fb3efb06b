use std::net::Ipv4Addr;

use malai_protocol::config::Relay;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::net::trust::Trust;

/// Lists variables by name, with the proxy that they name: its variable, and what is shown of it.
type Named<'a> = (&'a [(&'a str, &'a str)], Option<(&'a str, &'a str)>);

/// A password that nothing may show.
const SECRET: &str = "hunter2%40";

fn named(variables: &[(&str, &str)]) -> Result<Option<Proxy>, String> {
    read(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| Ok((*value).to_owned())))
}

fn proxy(url: &str) -> Proxy {
    named(&[("HTTPS_PROXY", url)]).expect("in order").expect("named")
}

fn tls() -> ClientConfig {
    let network = Network::default();
    let config = Trust::new(&network).tls(None).expect("trusts");
    config.client_config(Arc::new(rustls::crypto::ring::default_provider())).expect("a client")
}

#[test]
fn the_first_variable_that_is_set_names_the_proxy_and_http_goes_without_saying() {
    let table: [Named<'_>; 8] = [
        (&[], None),
        (&[("HTTPS_PROXY", "")], None),
        (&[("HTTP_PROXY", "http://a:1"), ("http_proxy", "http://b:1")], None),
        (&[("HTTPS_PROXY", "http://a:3128")], Some(("HTTPS_PROXY", "http://a:3128"))),
        (&[("https_proxy", "b:3128"), ("HTTPS_PROXY", "http://a:1")], Some(("https_proxy", "http://b:3128"))),
        (&[("https_proxy", ""), ("ALL_PROXY", "https://c")], Some(("ALL_PROXY", "https://c:443"))),
        (&[("all_proxy", " d ")], Some(("all_proxy", "http://d:80"))),
        (&[("HTTPS_PROXY", "http://u:p@[2001:db8::7]:3128/x")], Some(("HTTPS_PROXY", "http://u:…@[2001:db8::7]:3128"))),
    ];
    for (variables, wanted) in table {
        let found = named(variables).unwrap_or_else(|why| panic!("{variables:?}: {why}"));
        let found = found.map(|proxy| (proxy.variable, proxy.shown()));
        assert_eq!(found, wanted.map(|(variable, shown)| (variable, shown.to_owned())), "{variables:?}");
    }
}

#[test]
fn a_value_that_names_no_http_proxy_is_told_of_with_its_variable_and_an_example_and_without_what_it_says() {
    for value in [
        "socks5://u:hunter2%40@a:1",
        "http://",
        "http://u:hunter2%40@:1",
        "://",
        "a b",
        "http://a:99999",
        "http://a:0",
        "[",
        "ftp://a",
    ] {
        let why = named(&[("HTTPS_PROXY", value)]).expect_err(value);
        assert!(why.starts_with("HTTPS_PROXY is not the URL of an HTTP proxy: "), "{value}: {why}");
        assert!(why.contains("http://proxy.example.com:3128") && !why.contains("hunter2"), "{value}: {why}");
    }
    assert!(read(|name| (name == "ALL_PROXY").then_some(Err(()))).is_err_and(|why| why.contains("ALL_PROXY")));
}

#[test]
fn a_cluster_has_the_proxy_unless_every_relay_is_exempt() {
    let network = |urls: &[&str]| Network {
        relays: Some(urls.iter().map(|url| Relay::at(*url)).collect()),
        ..Network::default()
    };
    let (inside, outside) = ("https://relay.corp.example", "https://relay.example.net:7443");
    let exempting =
        |list: &str| named(&[("HTTPS_PROXY", "http://a:1"), ("NO_PROXY", list)]).expect("in order").expect("named");
    let table: [(&str, &[&str], bool, usize); 6] = [
        ("", &[outside], true, 0),
        ("corp.example", &[inside], false, 0),
        ("corp.example", &[inside, outside], true, 1),
        ("*", &[inside, outside], false, 0),
        ("", &["http://127.0.0.1:3340"], false, 0),
        ("", &[], false, 0),
    ];
    for (list, relays, wanted, in_vain) in table {
        let (proxy, network) = (exempting(list), network(relays));
        assert_eq!(proxy.is_for(&network), wanted, "{list:?} {relays:?}");
        assert_eq!(proxy.exempt_in_vain(&network).len(), in_vain, "{list:?} {relays:?}");
    }
    assert!(exempting("").is_for(&Network::default()), "the public relays");
}

/// Starts a proxy that gives this answer to one request; its task returns the request.
async fn answering(answer: &'static [u8]) -> (u16, JoinHandle<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.expect("a request"));
        }
        stream.write_all(answer).await.expect("a reader");
        String::from_utf8(request).expect("text")
    });
    (port, task)
}

async fn tried(answer: &'static [u8]) -> (Result<Box<dyn Stream>, ProxyError>, String) {
    let (port, task) = answering(answer).await;
    let proxy = proxy(&format!("http://us%20er:{SECRET}@127.0.0.1:{port}"));
    let made = proxy.connect("relay.example.com", 443, &tls()).await;
    (made, task.await.expect("it ends"))
}

#[tokio::test]
async fn a_connection_goes_by_connect_with_name_and_password_and_what_follows_the_answer_is_the_other_hosts() {
    let (made, request) = tried(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nhello").await;
    let mut stream = made.expect("connected");
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).await.expect("bytes");
    assert_eq!(&hello, b"hello");
    assert!(
        request.starts_with("CONNECT relay.example.com:443 HTTP/1.1\r\nHost: relay.example.com:443\r\n"),
        "{request}"
    );
    // "us er:hunter2@"
    assert!(request.contains("\r\nProxy-Authorization: Basic dXMgZXI6aHVudGVyMkA=\r\n"), "{request}");
}

#[tokio::test]
async fn what_a_proxy_says_against_it_is_told_with_what_mends_it_and_without_the_password() {
    let table: [(&'static [u8], &str, &str); 7] = [
        (b"HTTP/1.1 407 no\r\n\r\n", "refuses the user name and password, or wants one (407)", "USER:PASSWORD"),
        (b"HTTP/1.0 403 no\r\n\r\n", "refuses to connect to relay.example.com:443 (403)", "allow CONNECT"),
        (b"HTTP/1.1 502 \x1b[2J\r\n\r\n", "refuses to connect to relay.example.com:443 (502)", "allow CONNECT"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "does not answer as an HTTP proxy", "names an HTTP proxy"),
        (b"HTTP/1.1 20\r\n\r\n", "does not answer as an HTTP proxy", "names an HTTP proxy"),
        (b"HTTP/1.1 200 half", "does not answer as an HTTP proxy", "names an HTTP proxy"),
        (&[b'x'; 2 * MAX_PROXY_ANSWER_BYTES], "does not answer as an HTTP proxy", "names an HTTP proxy"),
    ];
    for (answer, what, mend) in table {
        let (made, _) = tried(answer).await;
        let error = made.err().expect("not connected");
        assert!(error.to_string().contains(what), "{error}");
        assert!(error.mend.contains(mend), "{error:?}");
        assert!(!format!("{error:?}").contains("hunter2") && !error.to_string().contains('\u{1b}'), "{error:?}");
    }
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port").local_addr().expect("an address");
    let away = proxy(&format!("http://u:{SECRET}@{free}"));
    let error = away.connect("relay.example.com", 443, &tls()).await.err().expect("nobody is there");
    assert!(
        error.to_string().contains("cannot be reached") && !format!("{error:?} {away:?}").contains("hunter2"),
        "{error}"
    );
}
