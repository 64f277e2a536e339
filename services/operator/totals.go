package operator

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/operator/api/v1alpha1"
)

// totals adds up the partitions that a status is about.
type totals struct {
	// count is the number of partitions in each status.
	count map[lag.Status]int
	// worstIn is the worst partition in each status.
	worstIn map[lag.Status]*partition
	// worst is the partition that needs attention first. It is nil if there is none.
	worst *partition
	// committed is the number of partitions with a committed offset.
	committed int
	// records is the number of unread records in those.
	records int64
	// oldest is the partition with the oldest unread record. It is nil if committed is 0.
	oldest *partition
	// toClose is the time until everything is read. It is negative if one partition does not catch
	// up.
	toClose time.Duration
	// lost is the number of records that retention deleted before the group read them, in the
	// partitions where this process saw it.
	lost int64
	// standing are the stalled and stopped partitions, by topic and number.
	standing []v1alpha1.StandingPartition
	// withheld is the log of the oldest open transaction that the group waits for, longer than its
	// objective allows and longer than a minute. It is nil if there is none.
	withheld *openLog
	// unsubscribed are the topics with records that the group neither subscribes to nor commits in.
	unsubscribed []string
	// incomplete is true if a part could not be read. The sums are of the rest, so the truth may be more.
	incomplete bool
	// undetermined is true if a partition has not been watched long enough: records are unread and
	// old, or may be lost, and it is not known yet whether the group moves.
	undetermined bool
}

// partition is a partition of a topic as the group has read it.
type partition struct {
	topic string
	lag.Partition
}

// openLog is a partition's log with an open transaction.
type openLog struct {
	topic string
	lag.TopicPartition
}

// worse reports whether p needs attention before other. A nil other needs none.
func (p *partition) worse(other *partition) bool {
	if other == nil {
		return true
	}
	rank := lag.Statuses()
	return cmp.Or(
		cmp.Compare(slices.Index(rank, p.Status), slices.Index(rank, other.Status)),
		cmp.Compare(p.Age, other.Age),
		cmp.Compare(p.Records, other.Records),
	) > 0
}

// addUp returns the totals of a group in some topics. A nil group has none.
func addUp(in *inputs, group *lag.Group, topics []string) *totals {
	t := &totals{count: map[lag.Status]int{}, worstIn: map[lag.Status]*partition{}}
	if group == nil {
		return t
	}
	// Without spec.topics the status is about all topics, also those that Kafka hides.
	t.incomplete = group.TopicsHidden && len(in.cg.Spec.Topics) == 0
	for _, name := range topics {
		t.incomplete = t.incomplete || in.partial(name)
		topic := group.Topics[name]
		if topic == nil {
			if in.hasRecords(name) {
				t.unsubscribed = append(t.unsubscribed, name)
			}
			continue
		}
		for _, p := range topic.Partitions {
			t.add(in, &partition{name, p})
		}
	}
	return t
}

// add counts one partition. The sums are of partitions with a committed offset only: without one,
// it is not known which records the group will read.
func (t *totals) add(in *inputs, p *partition) {
	t.count[p.Status]++
	if p.worse(t.worstIn[p.Status]) {
		t.worstIn[p.Status] = p
	}
	if p.worse(t.worst) {
		t.worst = p
	}
	if p.Status == lag.StatusLost {
		t.lost += p.Lost
	}
	if p.Status == lag.StatusStalled || p.Status == lag.StatusStopped {
		t.standing = append(t.standing, v1alpha1.StandingPartition{
			Topic: p.topic, Partition: p.Number, Offset: p.Committed,
			Since: metav1.NewTime(p.Unmoved.Truncate(time.Second)),
		})
	}
	if p.Committed < 0 {
		return
	}
	t.committed++
	t.records += p.Records
	if t.oldest == nil || p.Age > t.oldest.Age || p.Records > 0 && t.oldest.Records == 0 {
		t.oldest = p
	}
	if p.Close < 0 || t.toClose < 0 {
		t.toClose = -1
	} else {
		t.toClose = max(t.toClose, p.Close)
	}
	// A group that reads uncommitted records, or has committed beyond the beginning of a transaction,
	// does not wait for it.
	longest := max(in.objective(), lag.Patience)
	if t.withheld != nil {
		longest = t.withheld.Open
	}
	if log := in.log(p.topic, p.Number); log.Open > longest && p.Committed <= log.Stable && !p.Uncommitted {
		t.withheld = &openLog{p.topic, log}
	}
	if p.Status == lag.StatusOK {
		unmoved := p.Records > 0 && p.Age >= lag.Patience && p.LastProgress.IsZero()
		if unmoved && in.young(p.Partition) || in.outside(p.topic, p.Partition) {
			t.undetermined = true
		}
	}
}

// known reports whether the sums are the whole truth.
func (t *totals) known() bool { return t.committed > 0 && !t.incomplete }

// bare reports whether there are records in a partition in which the group has committed nothing.
func (t *totals) bare() bool { return t.count[lag.StatusNoCommit] > 0 || t.unsubscribed != nil }

// timeToClose returns the seconds until everything is read. It returns nil if there is nothing to
// catch up, or if that is not known.
func (t *totals) timeToClose() *int64 {
	if !t.known() || t.toClose <= 0 {
		return nil
	}
	return new(seconds(t.toClose))
}

// unread describes how much is unread, how old it is, and how long that will last.
func (t *totals) unread() string {
	switch {
	case t.committed == 0 && t.bare():
		return "there is no committed offset"
	case t.committed == 0:
		return "there is nothing to read"
	case t.records == 0:
		return "everything is read"
	}
	text := fmt.Sprintf("%s unread, the oldest for %s (%s/%d)",
		plural(t.records, "record", "records"), rounded(t.oldest.Age), t.oldest.topic, t.oldest.Number)
	if t.incomplete {
		text = "at least " + text
	}
	if s := t.timeToClose(); s != nil {
		text += fmt.Sprintf(", caught up in %s at this pace", time.Duration(*s)*time.Second)
	}
	return text
}

// partitionsIn names the worst partition in a status, and how many others there are.
func (t *totals) partitionsIn(status lag.Status) string {
	worst := t.worstIn[status]
	text := fmt.Sprintf("%s/%d", worst.topic, worst.Number)
	if n := t.count[status] - 1; n > 0 {
		text += fmt.Sprintf(" and %s", plural(n, "other partition", "other partitions"))
	}
	if worst.Committed >= 0 {
		least := ""
		if worst.AgeUnknown {
			least = "at least "
		}
		text += fmt.Sprintf(" (%s unread, the oldest for %s%s)",
			plural(worst.Records, "record", "records"), least, rounded(worst.Age))
	}
	return text
}

// seconds rounds up to whole seconds. The objective is in whole seconds too, so the result exceeds
// the objective exactly when d does.
func seconds(d time.Duration) int64 { return int64(math.Ceil(d.Seconds())) }

// rounded rounds up to what a person needs. Rounding up keeps a time over the objective over it.
func rounded(d time.Duration) time.Duration {
	unit := 100 * time.Millisecond
	if d >= 10*time.Second {
		unit = time.Second
	}
	return (d + unit - 1).Truncate(unit)
}

// plural returns a number with the word that fits it.
func plural[N int | int64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
