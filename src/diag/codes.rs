//! The table of codes: each has a stable number, a title and an explanation.

use std::fmt;

/// What a code means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeInfo {
    /// The stable number, such as `PAT0201`.
    pub code: &'static str,
    /// The fault in a few words.
    pub title: &'static str,
    /// Why it is a fault and what to do.
    pub explanation: &'static str,
    /// The code as a value.
    pub is: Code,
}

macro_rules! codes {
    ($($name:ident $code:literal $title:literal $explanation:literal)*) => {
        /// The kind of a fault. The number of a code never changes its meaning, and is not used again.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $(#[doc = $title] $name,)* }

        /// All codes in the order of their numbers.
        pub const CODES: &[CodeInfo] = &[
            $(CodeInfo { code: $code, title: $title, explanation: $explanation, is: Code::$name },)*
        ];
    };
}

impl Code {
    /// The row of the table.
    #[must_use]
    pub fn info(self) -> &'static CodeInfo {
        &CODES[self as usize]
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.info().code)
    }
}

codes! {
Syntax "PAT0001" "not YAML"
    "The text does not follow YAML 1.2. Reading goes on at the next `---`, so that other faults are found too."
Encoding "PAT0002" "not UTF-8"
    "Configuration files are UTF-8. The place is the first byte that is not."
Limit "PAT0003" "too large"
    "A file may have 1 MiB, a tree 16 MiB and 10,000 files; a document may nest 32 levels deep, hold 50,000 values, and expand anchors and aliases to 10,000 of them; a file may hold 100,000 values in 10,000 documents. Split large files by site."
DuplicateKey "PAT0004" "key given twice"
    "A mapping holds the same key twice. Many YAML readers silently take the last one; Patronus takes neither."
Tag "PAT0005" "tag"
    "YAML tags (`!!str`, `!include`) are refused: the schema says which type a value has."
MergeKey "PAT0006" "merge key"
    "`<<` is not part of YAML 1.2, and what it means depends on the reader. Share objects by `selector`, and values by `vars`."
ComplexKey "PAT0007" "key is not a scalar"
    "Keys of mappings are plain words; a list, a mapping or an alias cannot be one."
More "PAT0008" "more findings"
    "The list was cut short: more findings of the same kinds follow once these are corrected. Nothing is applied while it stands."
UnknownKind "PAT0101" "unknown kind"
    "Every document says `apiVersion: patronus.network/v1alpha1` and one of the kinds Site, Path, FailoverRule, SlaClass and Policy."
UnknownField "PAT0102" "unknown field"
    "The object has no field of this name. Fields that nobody reads would look as if they did something."
MissingField "PAT0103" "missing field"
    "The object lacks a field that it cannot do without."
WrongValue "PAT0104" "wrong value"
    "The value is not in the alphabet or the range of its field. Durations, ratios and rates carry a unit (`250ms`, `1%`, `50Mbit`); booleans are `true` and `false`."
NotYet "PAT0105" "not supported yet"
    "The language reserves this field or value, and this version does nothing with it. It is refused rather than ignored."
UndefinedVariable "PAT0106" "undefined variable"
    "`${name}` is replaced by the site's `vars`. The site that the object applies to does not define the variable."
Scope "PAT0107" "wrong scope"
    "An object in a document of its own belongs to one `site`, or to every site that its `selector` matches: exactly one of them. An inline object belongs to the site around it."
Combination "PAT0108" "fields that do not go together"
    "Some fields exclude or need one another, such as the actions of a policy, of which there is exactly one."
Duplicate "PAT0201" "defined twice"
    "Two objects of one kind have the same name in the same scope. There is no merging: delete or rename one."
Dangling "PAT0202" "no such object"
    "A reference names an object that does not exist. Names of paths and failover rules are looked up inside the site."
CrossSite "PAT0203" "reference into another site"
    "The name exists, but in another site. Paths and failover rules are used only by the site that they belong to."
Ambiguous "PAT0204" "ambiguous name"
    "Two objects of the same name apply to one site: one of its own and one by selector, or two by selector. Rename one, or narrow a selector."
SelectsNothing "PAT0205" "selector matches no site"
    "No site carries these labels, so the object has no effect."
HostBits "PAT0301" "host bits set in a prefix"
    "A prefix names a network; bits after its length must be zero. Write the network, or a longer prefix."
LanOverlap "PAT0302" "LAN prefixes overlap"
    "Two networks behind routers share addresses, within a site or across sites, so packets to them have two right ways."
DuplicateAddress "PAT0303" "address used twice"
    "Two endpoints have the same address. Private addresses may be used again at another site, where a provider translates them."
DuplicateTunnel "PAT0304" "tunnel id used twice"
    "A VXLAN identifier belongs to one tunnel: to one path and its mirror at the other site."
Mirror "PAT0305" "tunnel ends do not mirror"
    "A tunnel has two ends. A path from `berlin`, endpoint `fiber`, to `hq/fiber` needs one at `hq` from `fiber` to `berlin/fiber` with the same kind of tunnel, id and port."
NoRemote "PAT0306" "tunnel end without an address"
    "Packets of a VXLAN tunnel go to the `address` of the other site's endpoint, which therefore must be written down."
InnerCollision "PAT0307" "inner tunnel addresses collide"
    "The addresses inside a VXLAN tunnel come from its id and repeat every 32,512 ids. Two tunnels of a site must not share them: take another id, or give `local` and `remote`."
InterfaceConflict "PAT0308" "interface used twice"
    "An interface is either one LAN, or one endpoint, or one tunnel, and carries one path: replies and probes could not be told apart."
FamilyConflict "PAT0309" "address families do not fit"
    "Addresses that work together must be of one family, and a list has at most one address of each."
SharedLink "PAT0310" "IPv6 gateways on one link"
    "Linux looks an IPv6 next hop up in the main table, whatever interface the route names. Where its network is on-link by another interface only, the route is refused (`Nexthop has invalid gateway or device mismatch`). Link-local next hops are looked up on their own interface."
DuplicatePriority "PAT0401" "priority used twice"
    "Policies match in the order of their priorities, so two enabled policies of one site cannot share one."
Shadowed "PAT0402" "policy can never match"
    "An earlier policy takes every packet that this one describes. Give it a smaller priority number, or delete it."
CatchAll "PAT0403" "catch-all is not last"
    "A policy with an empty match takes everything, so policies after it never match. Give it the largest priority number."
EmptyMatch "PAT0404" "match fits no packet"
    "The conditions exclude each other, such as an IPv4 source with an IPv6 destination, or ports with a protocol that has none."
Protected "PAT0405" "protected prefix would be cut"
    "The router's own settings protect management networks from every commit. A policy that drops or rejects their traffic, or names them to steer it, is refused."
Backup "PAT0501" "backup repeats a path"
    "The paths of a failover rule are different: a backup that is the primary, or is named twice, protects nothing."
Thresholds "PAT0502" "failback threshold not above failover threshold"
    "A rule leaves a path below `failoverThreshold` and returns at `failbackThreshold`; without a gap between them it would swing."
NoWay "PAT0503" "no path for this traffic"
    "No path of the target can carry the address family that the policy is about, or a backup carries none of what its primary carries."
OneLine "PAT0504" "overflow within one line"
    "A rule with `strategy: overflow` sends new flows on when the line of a path is full. Two paths over one endpoint share that line and are full at the same moment, so the second relieves nothing. It still serves when the first fails for another reason."
NoTarget "PAT0601" "probe without a target"
    "A path to the internet, or a tunnel whose far end has no known address, needs `targets`."
SingleTarget "PAT0602" "probe with a single target"
    "When the only target is down, the path looks down. Give two or three that do not depend on each other."
Quorum "PAT0603" "quorum above the number of targets"
    "No round could ever succeed."
TargetInLan "PAT0604" "probe target inside a LAN"
    "A probe target inside a LAN of the same site is reached without the path, and says nothing about it."
ProbeTiming "PAT0605" "probe timing does not add up"
    "A round ends before the next begins: `timeout` is at most `interval`, and the window holds at least `downAfter` rounds."
SlowDetection "PAT0606" "slow detection"
    "A silent failure begins right after a probe at worst; then `downAfter` rounds have to be sent and the last one has to time out. While a round is lost the next ones come faster. Above 5 s people notice before Patronus does."
NotProbed "PAT0607" "path is not probed"
    "Without a probe only the loss of the carrier is noticed."
AnyAnswer "PAT0608" "probe that takes a login page for an answer"
    "A captive portal answers HTTP with a page of its own. Without `expect`, a status from 200 to 299 is all that is asked for; with `https`, the certificate tells."
NoWayOut "PAT0701" "site without a way out"
    "The site has no path, so nothing can be steered."
TooMany "PAT0702" "more objects than the marks can number"
    "Every path, every failover rule and every pair of a rule and its path takes a number from `ranges.targetMask`, every policy one from `ranges.policyMask` in the router's settings."
MaskOverlap "PAT0801" "masks overlap"
    "Connection marks carry the target's and the policy's number side by side, so their bits must differ."
BrokenTest "PAT0901" "test that makes no sense"
    "A `FailoverTest` names something that the configuration does not have, or asks for something that cannot be: a series that cannot be read, two things in one expectation."
Unmet "PAT0902" "expectation not met"
    "The rules did something else than the test expects. Either the rule is wrong, or the expectation is; what the rule did, and why, is told beside it."
Unexercised "PAT0903" "rule that no test exercises"
    "No test makes this failover rule leave a path, so nobody knows whether it would."
}
