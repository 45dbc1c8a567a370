//! Reports to a forge as they are written: which forge, which project, and the token that may set the status of commits.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Source, webhook::SecretFile};
use crate::{
    config::yaml::Document,
    diag::{Code, Diagnostic},
    forge::{Forge, Spec},
    http::Url,
};

/// What became of a commit is told to the forge that it came from. Default: nobody is told.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReportFile {
    /// Which forge it is.
    forge: ForgeFile,
    /// The address of its API. Default: that of github.com or gitlab.com.
    api: Option<String>,
    /// The project: `owner/name`; for GitLab also a longer path or its number.
    project: String,
    /// The token, which may set the status of commits and needs nothing else.
    token: SecretFile,
    /// Certificate authorities (PEM) that are trusted beside the system's.
    ca: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ForgeFile {
    Github,
    Gitlab,
    Gitea,
    Forgejo,
}

impl ForgeFile {
    const fn forge(self) -> Forge {
        match self {
            Self::Github => Forge::GitHub,
            Self::Gitlab => Forge::GitLab,
            Self::Gitea | Self::Forgejo => Forge::Gitea,
        }
    }

    /// Where its API usually is; none for those that everybody runs himself.
    const fn usual(self) -> Option<&'static str> {
        match self {
            Self::Github => Some("https://api.github.com"),
            Self::Gitlab => Some("https://gitlab.com/api/v4"),
            Self::Gitea | Self::Forgejo => None,
        }
    }
}

/// Checks what is to be reported where; `None` if nothing is, or it is wrong.
pub(super) fn build(
    file: Option<ReportFile>,
    source: Option<&Source>,
    document: &Document,
    found: &mut Vec<Diagnostic>,
) -> Option<Spec> {
    let file = file?;
    let mut wrong = |code: Code, at: &str, message: String, help: &str| {
        let at = document.value_at(&format!("/report{at}"));
        found.push(Diagnostic::error(code, message).at(at).help(help));
        None
    };
    if !matches!(source, Some(Source::Git(_))) {
        let help = "reports are about commits: follow a repository, `source: {git: {url: …}}`, or delete `report`";
        return wrong(Code::Combination, "", "`report` without a Git repository as the source".into(), help);
    }
    let Some(api) = file.api.as_deref().or(file.forge.usual()) else {
        let help = "add its address, such as `api: https://git.example.net/api/v1`";
        return wrong(Code::Combination, "", "this forge needs `api`".into(), help);
    };
    if let Err(message) = check_address(api) {
        let help = "write it as `https://git.example.net/api/v1`; without TLS only to this machine itself";
        return wrong(Code::WrongValue, "/api", format!("`{api}` cannot be used: {message}"), help);
    }
    let (forge, project) = (file.forge.forge(), file.project.as_str());
    if !is_project(forge, project) {
        let help = "write it as it stands in the address of the repository, such as `team/network`";
        return wrong(Code::WrongValue, "/project", format!("`{project}` is not a project"), help);
    }
    let Some(token) = file.token.build() else {
        let help = "give exactly one of `file`, `environment` and `systemd` (a name of `LoadCredential=`)";
        return wrong(Code::Combination, "/token", "where the token stands is not clear".into(), help);
    };
    let api = api.trim_end_matches('/').to_owned();
    Some(Spec { forge, api, project: project.to_owned(), token, ca: file.ca })
}

/// A token goes over TLS, or nowhere beyond this machine.
fn check_address(api: &str) -> Result<(), String> {
    let url: Url = api.parse().map_err(|error: crate::http::HttpError| error.to_string())?;
    let here = matches!(url.authority().host.as_str(), "127.0.0.1" | "::1" | "localhost");
    if url.is_tls() || here { Ok(()) } else { Err("the token would cross the network in the clear".into()) }
}

fn is_project(forge: Forge, project: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && part.chars().any(|c| c != '.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    };
    let parts: Vec<&str> = project.split('/').collect();
    let number = forge == Forge::GitLab && project.bytes().all(|b| b.is_ascii_digit());
    let length = if forge == Forge::GitLab { parts.len() >= 2 } else { parts.len() == 2 };
    parts.iter().all(|part| plain(part)) && (length || number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        settings::{Settings, SettingsError},
        source::git::Secret,
    };

    const GIT: &str = "source: {git: {url: 'https://git.example.net/team/network.git'}}\n";

    fn parse(report: &str) -> Result<Spec, String> {
        match Settings::parse("p.yaml", format!("{GIT}report: {report}\n").as_bytes()) {
            Ok(settings) => Ok(settings.report.unwrap()),
            Err(SettingsError::Invalid { rendered, .. }) => Err(rendered),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn each_forge_has_its_address_and_its_projects() {
        let hub = parse("{forge: github, project: team/network, token: {file: /t}}").unwrap();
        assert_eq!((hub.forge, hub.api.as_str()), (Forge::GitHub, "https://api.github.com"));
        assert_eq!((hub.project.as_str(), hub.token), ("team/network", Secret::File("/t".into())));
        let lab = parse("{forge: gitlab, project: a/b/network, token: {environment: T}, ca: /ca}").unwrap();
        assert_eq!((lab.api.as_str(), lab.ca), ("https://gitlab.com/api/v4", Some("/ca".into())));
        assert_eq!(parse("{forge: gitlab, project: '4711', token: {systemd: t}}").unwrap().project, "4711");
        let own = parse("{forge: forgejo, api: 'https://g.example/api/v1/', project: a/b, token: {file: /t}}").unwrap();
        assert_eq!((own.forge, own.api.as_str()), (Forge::Gitea, "https://g.example/api/v1"));
        assert!(parse("{forge: gitea, api: 'http://[::1]:3000/api/v1', project: a/b, token: {file: /t}}").is_ok());
    }

    #[test]
    fn what_does_not_go_together_is_refused_where_it_stands() {
        for (report, said) in [
            ("{forge: gitea, project: a/b, token: {file: /t}}", "needs `api`"),
            ("{forge: gitea, api: 'http://g.example', project: a/b, token: {file: /t}}", "in the clear"),
            ("{forge: github, api: 'https://u:hunter@g.example', project: a/b, token: {file: /t}}", "by reference"),
            ("{forge: github, project: network, token: {file: /t}}", "not a project"),
            ("{forge: github, project: a/../b, token: {file: /t}}", "not a project"),
            ("{forge: github, project: a/.., token: {file: /t}}", "not a project"),
            ("{forge: gitlab, project: 'a/b?x', token: {file: /t}}", "not a project"),
            ("{forge: github, project: a/b, token: {}}", "not clear"),
            ("{forge: github, project: a/b, token: {file: /t, systemd: t}}", "not clear"),
            ("{forge: bitbucket, project: a/b, token: {file: /t}}", "github"),
        ] {
            let shown = parse(report).unwrap_err();
            assert!(shown.contains(said) && shown.contains("p.yaml:2:"), "{report}: {shown}");
        }
        let without = "source: {dir: /x}\nreport: {forge: github, project: a/b, token: {file: /t}}\n";
        assert!(Settings::parse("p.yaml", without.as_bytes()).is_err());
    }
}
