package cart

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func creation(t testing.TB, id string) change {
	t.Helper()
	order := newOrder(contract.CreateOrder{OrderID: id, ItemsNum: 2}, noon)
	m, err := newEvent(contract.TypeCreated, order, "", noon).Message()
	if err != nil {
		t.Fatal(err)
	}
	return change{orderID: id, created: &m}
}

func update(id, status string, ifMatch ...string) change {
	return change{orderID: id, status: status, ifMatch: ifMatch}
}

func keyed(c change, key, fingerprint string) change {
	c.key, c.fingerprint = key, []byte(fingerprint)
	return c
}

// text is a result as these tests write it: the version of the order, or why it was refused.
func (r result) text() string {
	if r.err == nil {
		return etag(r.order.version)
	}
	return r.err.Error()
}

// ample is room for all changes of these tests.
var ample = room{events: 9, bytes: 1 << 20, disk: 1 << 20}

func TestChangesOfOneBatchAreDecidedInTheirOrder(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		room    room
		changes []change
		want    []string
		// Type and version of what is published.
		events []string
	}{
		"created, updated and updated again": {ample,
			[]change{creation(t, "a"), update("a", "paid"), update("a", "shipped")},
			[]string{`"1"`, `"2"`, `"3"`}, []string{"a order.created 1", "a order.updated 2", "a order.updated 3"}},
		"a refusal costs its neighbours nothing": {ample,
			[]change{creation(t, "a"), creation(t, "a"), update("b", "paid"), update("a", "new"), creation(t, "b")},
			[]string{`"1"`, errExists.Error(), errNotFound.Error(), errSameStatus.Error(), `"1"`},
			[]string{"a order.created 1", "b order.created 1"}},
		"If-Match names the version that the order has by then": {ample,
			[]change{
				creation(t, "a"), update("a", "paid", `"2"`), update("a", "paid", `"7"`, `"1"`),
				update("a", "x", `W/"2"`), update("a", "x", `"2"`),
			},
			[]string{
				`"1"`, `order has version "1", against If-Match`, `"2"`,
				`order has version "2", against If-Match`, `"3"`,
			},
			[]string{"a order.created 1", "a order.updated 2", "a order.updated 3"}},
		"a key gives its result again, and only for its request": {ample,
			[]change{
				keyed(creation(t, "a"), "k", "1"), update("a", "paid"),
				keyed(creation(t, "a"), "k", "1"), keyed(creation(t, "b"), "k", "2"),
			},
			[]string{`"1"`, `"2"`, `"1"`, errKeyReused.Error()}, []string{"a order.created 1", "a order.updated 2"}},
		"a refusal burns no key": {ample,
			[]change{keyed(update("a", "paid"), "k", "1"), creation(t, "a"), keyed(update("a", "paid"), "k", "1")},
			[]string{errNotFound.Error(), `"1"`, `"2"`}, []string{"a order.created 1", "a order.updated 2"}},
		"a full backlog takes nothing more, and still repeats results": {room{1, ample.bytes, ample.disk},
			[]change{
				keyed(creation(t, "a"), "k", "1"), creation(t, "b"),
				keyed(creation(t, "a"), "k", "1"), creation(t, "a"),
			},
			[]string{`"1"`, errBacklog.Error(), `"1"`, errExists.Error()}, []string{"a order.created 1"}},
		"so does one that is full by its size: the last one may exceed it": {room{9, 1, ample.disk},
			[]change{creation(t, "a"), creation(t, "b"), creation(t, "a")},
			[]string{`"1"`, errBacklog.Error(), errExists.Error()}, []string{"a order.created 1"}},
		"a disk that is nearly full takes what fits": {
			room{9, ample.bytes, changeCost(len(creation(t, "a").created.Value), false)},
			[]change{keyed(creation(t, "a"), "k", "1"), creation(t, "a"), creation(t, "b"), creation(t, "a")},
			[]string{errNearlyFull.Error(), `"1"`, errNearlyFull.Error(), errExists.Error()},
			[]string{"a order.created 1"}},
	} {
		b := newBatch(noon)
		b.room = c.room
		var got, events []string
		for _, r := range b.decideAll(c.changes) {
			got = append(got, r.text())
		}
		for _, m := range b.messages {
			e, err := contract.DecodeEvent(m.Topic, 0, m.Key, m.Value, m.Headers)
			if err != nil {
				t.Fatal(err)
			}
			events = append(events, e.Order.OrderID+" "+e.Type+" "+json.Number(etag(e.Order.Version)[1:2]).String())
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: results (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(c.events, events); diff != "" {
			t.Errorf("%s: events (-want +got):\n%s", name, diff)
		}
	}
}

// A version never overflows, whatever a foreign producer has written into the topics.
func TestTheHighestVersionIsTheLast(t *testing.T) {
	t.Parallel()
	b := newBatch(noon)
	b.room = ample
	b.orders["a"] = orderState{contract.MaxVersion - 1, creation(t, "a").created.Value}
	if got, err := b.decide(update("a", "paid")); err != nil || got.version != contract.MaxVersion {
		t.Errorf("the update before the last: version %d (%v), want %d", got.version, err, int64(contract.MaxVersion))
	}
	if _, err := b.decide(update("a", "shipped")); !errors.Is(err, errLastVersion) {
		t.Errorf("the update behind the last: %v, want %v", err, errLastVersion)
	}
}

func TestAnUpdateChangesTheStatusAndNothingElse(t *testing.T) {
	t.Parallel()
	created := creation(t, "a")
	b := newBatch(noon.Add(time.Hour))
	b.room = ample
	before, err := b.decide(created)
	const trace = "00-11111111111111111111111111111111-2222222222222222-01"
	after, err2 := b.decide(change{orderID: "a", status: "paid", traceparent: trace})
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	var want, got contract.Order
	if err := errors.Join(json.Unmarshal(before.body, &want), json.Unmarshal(after.body, &got)); err != nil {
		t.Fatal(err)
	}
	want.Status, want.Version = "paid", 2
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	m := b.messages[1]
	e, err := contract.DecodeEvent(m.Topic, 5, m.Key, m.Value, m.Headers)
	if err != nil || !e.Time.Equal(noon.Add(time.Hour)) || e.Traceparent == "" || e.ID == "" {
		t.Errorf("its event is %+v (%v), want the time, trace and an ID of its own", e, err)
	}
}

func TestNewOrder(t *testing.T) {
	t.Parallel()
	o := newOrder(contract.CreateOrder{OrderID: "a", ItemsNum: 1000}, noon)
	var sum contract.Amount
	for i, it := range o.Items {
		if it.Quantity < 1 || it.Quantity > 4 || it.Price < 10_00 || it.Price > 99_00 || it.Price%100 != 0 {
			t.Fatalf("item %d is %+v, want 1-4 of a price of 10-99", i, it)
		}
		sum += contract.Amount(it.Quantity) * it.Price
	}
	if o.TotalAmount != sum || o.Status != "new" || o.Currency != "USD" || o.Version != 1 ||
		o.Items[999].ProductID != "Product1000" || len(o.CustomerID) != 36 {
		o.Items = nil
		t.Errorf("%+v, want a total of %s", o, sum)
	}
}
