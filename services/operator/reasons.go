package operator

import "regexp"

// Reasons of conditions whose status is Unknown.
const (
	unknownCluster     = "UnknownCluster"
	clusterUnreachable = "ClusterUnreachable"
	unreadable         = "Unreadable"
	notKnownYet        = "NotKnownYet"
	noTopics           = "NoTopics"
)

// Reasons why a group does not consume.
const (
	recordsLost     = "RecordsLost"
	stopped         = "Stopped"
	stalled         = "Stalled"
	recordsWithheld = "RecordsWithheld"
	noCommit        = "NoCommit"
	notSubscribed   = "NotSubscribed"
)

// Reasons of a group that consumes. The first two deserve a look all the same.
const (
	rewound       = "Rewound"
	fallingBehind = "FallingBehind"
	noMembers     = "NoMembers"
	reading       = "Reading"
)

// Reasons of the objective and of topics.
const (
	objectiveMissed = "ObjectiveMissed"
	withinObjective = "WithinObjective"
	notReady        = "NotReady"
	notFound        = "NotFound"
	allReady        = "AllReady"
)

// reasonPattern is what the API server accepts as a reason.
var reasonPattern = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)

// reasonOr returns the reason that another program gave if it can be one here, and otherwise
// fallback.
func reasonOr(reason, fallback string) string {
	if reasonPattern.MatchString(reason) {
		return reason
	}
	return fallback
}
