//! A question to a name server, and whether what comes back answers it. Pure.

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};

use crate::validate::intent::Question;

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not an answer to this question: somebody else's, or forged. Waiting goes on.
    Other,
    /// The answer.
    Good,
    /// The server answered and has no answer; a few words on why.
    Bad(String),
}

/// The question as a packet; none if the name is not one, which validation has excluded.
#[must_use]
pub fn question(question: &Question, id: u16) -> Option<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(query(question)?);
    message.to_vec().ok()
}

fn query(question: &Question) -> Option<Query> {
    let name = Name::from_ascii(format!("{}.", question.name)).ok()?;
    Some(Query::query(name, question.record.parse::<RecordType>().ok()?))
}

/// Judges an answer by its id, name and type, its response code, and whether there is a record.
#[must_use]
pub fn judge(question: &Question, id: u16, packet: &[u8]) -> Verdict {
    let Some(asked) = query(question) else { return Verdict::Other };
    let Ok(message) = Message::from_vec(packet) else { return Verdict::Other };
    let about = |q: &Query| q.query_type() == asked.query_type() && q.name() == asked.name();
    let ours = message.metadata.id == id
        && message.metadata.message_type == MessageType::Response
        && message.queries.first().is_some_and(about);
    if !ours {
        return Verdict::Other;
    }
    match message.metadata.response_code {
        ResponseCode::NoError if message.metadata.truncation => Verdict::Good,
        ResponseCode::NoError if message.answers.iter().any(|r| r.record_type() == asked.query_type()) => Verdict::Good,
        ResponseCode::NoError => Verdict::Bad(format!("no {} record", question.record)),
        code => Verdict::Bad(code.to_str().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{RData, Record, rdata::A};

    use super::*;

    fn asked() -> Question {
        Question { port: 53, name: "www.example.org".into(), record: "A".into() }
    }

    fn answer(change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(query(&asked()).unwrap());
        let name = Name::from_ascii("WWW.Example.org.").unwrap();
        message.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 1))));
        change(&mut message);
        message.to_vec().unwrap()
    }

    #[test]
    fn the_question_is_what_was_configured() {
        let packet = question(&asked(), 0x0102).unwrap();
        assert_eq!(packet[..6], [1, 2, 1, 0, 0, 1]);
        assert_eq!(packet[12..], *b"\x03www\x07example\x03org\x00\x00\x01\x00\x01");
    }

    #[test]
    fn an_answer_has_to_fit_the_question() {
        assert_eq!(judge(&asked(), 7, &answer(|_| {})), Verdict::Good);
        assert_eq!(judge(&asked(), 8, &answer(|_| {})), Verdict::Other, "another id");
        assert_eq!(judge(&asked(), 7, &answer(|m| m.queries.clear())), Verdict::Other);
        let query = answer(|m| m.metadata.message_type = MessageType::Query);
        assert_eq!(judge(&asked(), 7, &query), Verdict::Other, "our own question");
        let other = Question { name: "example.org".into(), ..asked() };
        assert_eq!(judge(&other, 7, &answer(|_| {})), Verdict::Other, "another name");
        for n in 0..12 {
            assert_eq!(judge(&asked(), 7, &answer(|_| {})[..n]), Verdict::Other);
        }
    }

    #[test]
    fn an_answer_without_an_answer_is_a_fault() {
        let refused = answer(|m| m.metadata.response_code = ResponseCode::ServFail);
        assert!(matches!(judge(&asked(), 7, &refused), Verdict::Bad(why) if why.contains("Server Failure")));
        assert_eq!(judge(&asked(), 7, &answer(|m| m.answers.clear())), Verdict::Bad("no A record".into()));
        assert_eq!(
            judge(
                &asked(),
                7,
                &answer(|m| {
                    m.answers.clear();
                    m.metadata.truncation = true;
                })
            ),
            Verdict::Good
        );
    }
}
