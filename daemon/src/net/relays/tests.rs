use std::net::Ipv4Addr;

use malai_protocol::local::RelayState;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::*;
use crate::net::endpoint::{Bound, Options, bind};
use crate::store::keys::{ClusterKey, MachineKey};
use crate::store::secret::Secret;

/// Names two addresses where no program listens.
const FIRST: &str = "https://127.0.0.1:1/";
const SECOND: &str = "https://127.0.0.1:2/";

fn relay(url: &str, pin: Option<u8>) -> Relay {
    Relay { sha256: pin.map(|byte| [byte; 32]), ..Relay::at(url) }
}

fn network(relays: &[Relay]) -> Network {
    Network { relays: Some(relays.to_vec()), discovery: Some(Vec::new()), ..Network::default() }
}

fn ticket() -> Ticket {
    ClusterKey::generate().unwrap().ticket(1).unwrap()
}

async fn bound(relays: &[Relay]) -> Bound {
    bind(&Options::caller(Secret::copied(&[1; 32]), &network(relays))).await.unwrap()
}

fn urls(relays: &Relays) -> Vec<String> {
    relays.urls().iter().map(ToString::to_string).collect()
}

#[test]
fn a_ticket_is_for_the_relays_that_the_token_names_with_a_pin_and_that_still_have_it() {
    let (pinned, plain) = (relay(FIRST, Some(1)), relay(SECOND, None));
    let ticket = ticket();
    let pass = Pass::new(&ticket, &[pinned.clone(), plain.clone()]);
    let elsewhere = relay("https://192.0.2.9/", Some(1));
    let now = network(&[pinned.clone(), plain, elsewhere]);
    let shown: Vec<_> = entries(&now, Some(&pass))
        .unwrap()
        .into_values()
        .map(|e| (e.relay.url.clone(), e.config.auth_token.clone()))
        .collect();
    let wanted =
        [(FIRST, Some(ticket.to_text())), (SECOND, None), ("https://192.0.2.9/", None)].map(|(u, t)| (u.to_owned(), t));
    assert_eq!(shown, wanted);
    assert_eq!(pass.shown_to(&relay(FIRST, Some(2))), None, "it has another certificate now");
    assert_eq!(pass.shown_to(&relay(FIRST, None)), None);
    let relays = Relays::new(&now, Trust::new(&now), Some(pass)).unwrap();
    assert!(!format!("{relays:?}").contains("malaiticket"), "{relays:?}");
}

#[test]
fn a_relay_of_malais_takes_tickets_with_a_pin_or_over_tls() {
    let id = Some(MachineKey::generate().unwrap().id());
    let with_key = |url: &str| Relay { id, ..Relay::at(url) };
    assert!(relay(FIRST, Some(1)).takes_tickets() && with_key(FIRST).takes_tickets());
    assert!(!relay(FIRST, None).takes_tickets() && !with_key("http://192.0.2.9/").takes_tickets());
}

#[tokio::test]
async fn the_relays_that_are_left_do_not_rest() {
    let network_of = |urls: &[&str]| network(&urls.iter().map(|url| relay(url, None)).collect::<Vec<_>>());
    let Bound { endpoint, relays } = bound(&[relay(FIRST, None), relay(SECOND, None)]).await;
    let first: RelayUrl = FIRST.parse().unwrap();
    relays.rest(&endpoint, &first).await;
    assert!(relays.lock()[&first].rests.is_some());
    relays.replace(&endpoint, &network_of(&[FIRST])).await.unwrap();
    assert!(relays.lock()[&first].rests.is_none());
    // It was put back where it had been taken out: there is something to take out again.
    assert!(endpoint.remove_relay(&first).await.is_some());
}

#[tokio::test]
async fn relays_are_replaced_at_once_and_a_url_that_cannot_be_used_changes_nothing() {
    let Bound { endpoint, relays } = bound(&[relay(FIRST, None)]).await;
    relays.replace(&endpoint, &network(&[relay(FIRST, Some(1)), relay(SECOND, None)])).await.unwrap();
    assert_eq!(urls(&relays), [FIRST, SECOND]);
    let failure = relays.replace(&endpoint, &network(&[relay("https://[", None)])).await.unwrap_err();
    assert!(failure.message.contains("`https://[` is not a URL"), "{failure}");
    assert_eq!(urls(&relays), [FIRST, SECOND]);
    relays.replace(&endpoint, &network(&[relay(SECOND, None)])).await.unwrap();
    assert_eq!(urls(&relays), [SECOND]);
    endpoint.close().await;
}

#[tokio::test]
async fn a_relay_that_fails_rests_unless_it_is_the_last_and_then_the_others_are_asked_soon() {
    let Bound { endpoint, relays } = bound(&[relay(FIRST, None), relay(SECOND, None)]).await;
    let (first, second): (RelayUrl, RelayUrl) = (FIRST.parse().unwrap(), SECOND.parse().unwrap());
    let rests = |url: &RelayUrl| relays.lock()[url].rests.map(|until| until - Instant::now());
    relays.lock().get_mut(&first).unwrap().fails("gone".into());
    relays.rest(&endpoint, &first).await;
    assert!(rests(&first).is_some_and(|rest| rest > RESTED_RELAY_ASK_DELAY), "{:?}", rests(&first));
    assert!(relays.has_other_than(&first) && !relays.has_other_than(&second));
    let told = relays.states(&endpoint);
    assert_eq!((told[0].state, told[0].error.as_deref()), (RelayState::Failed, Some("gone")));
    assert_eq!(told[1].state, RelayState::Connecting);
    assert_eq!(relays.failures(&endpoint), format!("; relay {FIRST} cannot be used: gone"));

    relays.rest(&endpoint, &second).await;
    assert_eq!(rests(&second), None);
    assert!(rests(&first).is_some_and(|rest| rest <= RESTED_RELAY_ASK_DELAY), "{:?}", rests(&first));
    // It does not answer: it rests on, longer.
    let until = relays.lock()[&first].rests.unwrap();
    tokio::time::sleep_until(until).await;
    relays.take_back(&endpoint).await;
    assert!(rests(&first).is_some_and(|rest| rest > RELAY_REST_MIN_TIME), "{:?}", rests(&first));
    endpoint.close().await;
}

#[tokio::test]
async fn a_suspect_is_asked_and_rests_when_it_only_takes_connections() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("https://{}/", silent.local_addr().unwrap());
    let Bound { endpoint, relays } = bound(&[relay(&url, None), relay(SECOND, None)]).await;
    relays.suspect(&url.parse().unwrap());
    relays.suspect(&"https://192.0.2.1/".parse().unwrap());
    assert_eq!(relays.suspects().len(), 1, "others' relays are not asked");
    relays.ask_suspects(&endpoint).await;
    assert!(relays.failures(&endpoint).contains("no answer within 2 s"), "{}", relays.failures(&endpoint));
    assert!(relays.lock()[&url.parse().unwrap()].rests.is_some());
    endpoint.close().await;
}

#[tokio::test]
async fn garbage_and_a_closed_port_are_no_answer_and_none_is_waited_for() {
    let Bound { endpoint, relays: _ } = bound(&[relay(SECOND, None)]).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url: RelayUrl = format!("https://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let garbage = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&[0xff; 70_000]).await.unwrap();
        stream
    });
    let why = answer::answers(&url, None, endpoint.tls_config()).await.unwrap_err();
    assert!(why.starts_with("no answer: ") && !why.contains("within"), "{why}");
    garbage.abort();
    let why = answer::answers(&SECOND.parse().unwrap(), None, endpoint.tls_config()).await.unwrap_err();
    assert!(why.contains("refused"), "{why}");
    endpoint.close().await;
}

#[tokio::test]
async fn one_that_answers_again_is_taken_back_and_only_a_refusal_is_not_forgotten() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let Bound { endpoint, relays } = bound(&[relay(&url, None), relay(SECOND, None)]).await;
    for (why, after) in
        [("gone".to_owned(), None), (format!("{RELAY_REFUSES}: x"), Some(format!("{RELAY_REFUSES}: x")))]
    {
        {
            let mut set = relays.lock();
            let entry = set.get_mut(&url.parse().unwrap()).unwrap();
            entry.fails(why);
            entry.rests = Some(Instant::now());
        }
        relays.take_back(&endpoint).await;
        let entry = relays.lock()[&url.parse().unwrap()].clone();
        assert_eq!((entry.failure, entry.rests), (after, None));
    }
    endpoint.close().await;
}
