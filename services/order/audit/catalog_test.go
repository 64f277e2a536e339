package audit

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func openCatalog(t testing.TB) *catalog {
	t.Helper()
	c, err := newCatalog(filepath.Join(t.TempDir(), "catalog"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(filepath.Dir(c.path)); len(left) > 0 || err != nil {
			t.Errorf("the catalog leaves %v, %v", left, err)
		}
	})
	return c
}

func (c *catalog) mustView(t testing.TB) *view {
	t.Helper()
	v, err := c.view()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (c *catalog) mustPut(t testing.TB, orders ...order) {
	t.Helper()
	if err := c.put(orders); err != nil {
		t.Fatal(err)
	}
}

// bodies returns those of all orders.
func (v *view) bodies() (all []string, err error) {
	err = v.each(func(body []byte) error {
		all = append(all, string(body))
		return nil
	})
	return all, err
}

// A catalog has what a map has, in the order in which the keys came, and each view has what the map had then.
func TestCatalogAgainstAMap(t *testing.T) {
	t.Parallel()
	t.Run("many orders", func(t *testing.T) {
		t.Parallel()
		c := openCatalog(t)
		againstAMap(t, c, 40_000)
		if slots := len(c.table.slots); slots < firstSlots*growth*growth {
			t.Errorf("the table has %d slots: it has not grown twice", slots)
		}
	})
	t.Run("many orders with one hash", func(t *testing.T) {
		t.Parallel()
		c := openCatalog(t)
		c.hash = func(id string) uint64 { return uint64(id[len(id)-1]) << 58 }
		againstAMap(t, c, 100)
	})
}

// againstAMap puts so many different orders, at random.
func againstAMap(t *testing.T, c *catalog, different int) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	var ids []string
	newest := make(map[string]order)
	bodies := func() []string {
		var all []string
		for _, id := range ids {
			all = append(all, string(newest[id].body))
		}
		return all
	}
	type opened struct {
		*view
		want []string
	}
	var views []opened
	checkOne := func() {
		v := views[0]
		views = views[1:]
		got, err := v.bodies()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(v.want, got); diff != "" || int64(len(v.want)) != v.orders {
			t.Fatalf("a view of %d orders (-want +got):\n%s", v.orders, diff)
		}
		v.close()
	}
	for n := range 400 {
		var batch []order
		put := make(map[string]bool)
		for range rng.IntN(min(500, different)) {
			// Some IDs are the beginning of others.
			id := strings.Repeat("o", rng.IntN(3)) + fmt.Sprint(rng.IntN(different))
			o := order{id: id, version: 1 + rng.Int64N(9)}
			if put[o.id] {
				continue
			}
			put[o.id] = true
			o.body = fmt.Appendf(nil, "%s at %d in batch %d%s", o.id, o.version, n, strings.Repeat("!", rng.IntN(60)))
			if rng.IntN(1000) == 0 {
				// Longer than what a view reads at once.
				o.body = append(o.body, strings.Repeat("?", 300<<10)...)
			}
			batch = append(batch, o)
			known, ok := newest[o.id]
			if !ok {
				ids = append(ids, o.id)
			}
			if o.version > known.version {
				newest[o.id] = o
			}
		}
		c.mustPut(t, batch...)
		// There are times without a view.
		if n%100 < 50 && rng.IntN(10) == 0 {
			views = append(views, opened{c.mustView(t), bodies()})
		}
		for len(views) > 3 || len(views) > 0 && n%100 >= 50 {
			checkOne()
		}
	}
	views = append(views, opened{c.mustView(t), bodies()})
	for len(views) > 0 {
		checkOne()
	}
}

// Without an open view, a new version needs no room.
func TestANewVersionTakesThePlaceOfTheOneBefore(t *testing.T) {
	t.Parallel()
	c := openCatalog(t)
	body := func(status string) []byte { return fmt.Appendf(nil, `{"status":%q,"items":[]}`, status) }
	c.mustPut(t, order{"A", 1, body("new")}, order{"B", 1, body("new")})
	end := c.end
	c.mustPut(t, order{"A", 10, body("out for delivery")})
	if c.end != end {
		t.Errorf("the log grew from %d to %d bytes", end, c.end)
	}
	v := c.mustView(t)
	c.mustPut(t, order{"A", 11, body("delivered")})
	if c.end == end {
		t.Error("the log did not grow beside an open view")
	}
	end = c.end
	got, err := v.bodies()
	want := []string{string(body("out for delivery")), string(body("new"))}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("the open view (-want +got):\n%s%v", diff, err)
	}
	v.close()
	c.mustPut(t, order{"A", 12, body("returned")})
	if c.end != end {
		t.Errorf("after the view was closed, the log grew from %d to %d bytes", end, c.end)
	}
}

// Whatever the disk changes in a record or in the list shows.
func TestADamagedCatalogIsNoticed(t *testing.T) {
	t.Parallel()
	for name, file := range map[string]func(c *catalog) *os.File{
		"log":  func(c *catalog) *os.File { return c.log },
		"list": func(c *catalog) *os.File { return c.list },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := openCatalog(t)
			orders := []order{{"A", 1, []byte("first")}, {"B", 2, []byte("second")}, {"C", 3, []byte("third")}}
			c.mustPut(t, orders...)
			size := orders[0].size()
			if name == "list" {
				size = placeBytes
			}
			for at := range size {
				// Of the second of three.
				place := at + orders[0].capacity()
				if name == "list" {
					place = at + placeBytes
				}
				flip(t, file(c), place)
				v := c.mustView(t)
				if got, err := v.bodies(); err == nil {
					t.Errorf("byte %d is changed, and nobody notices it: %q", at, got)
				}
				v.close()
				flip(t, file(c), place)
			}
			v := c.mustView(t)
			defer v.close()
			if got, err := v.bodies(); err != nil || len(got) != 3 {
				t.Errorf("undamaged: %q, %v", got, err)
			}
		})
	}
}

// The place of a whole record is the right one only for its own order.
func TestAPlaceOfAnotherOrderIsNoticed(t *testing.T) {
	t.Parallel()
	c := openCatalog(t)
	c.mustPut(t, order{"A", 1, []byte("a")}, order{"B", 1, []byte("b")})
	var first [placeBytes]byte
	_, err := c.list.ReadAt(first[:], 0)
	if err == nil {
		_, err = c.list.WriteAt(first[:], placeBytes)
	}
	if err != nil {
		t.Fatal(err)
	}
	v := c.mustView(t)
	defer v.close()
	if got, err := v.bodies(); !errors.Is(err, errDamaged) {
		t.Errorf("two orders at one place: %q, %v", got, err)
	}
}

// flip changes a bit of a file, or changes it back.
func flip(t *testing.T, file *os.File, at int64) {
	t.Helper()
	var b [1]byte
	_, err := file.ReadAt(b[:], at)
	if err == nil {
		b[0] ^= 1
		_, err = file.WriteAt(b[:], at)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Orders with one hash are told apart, also where a search goes on at the beginning of the table.
func TestOrdersWithOneHash(t *testing.T) {
	t.Parallel()
	for name, hash := range map[string]uint64{"first slot": 0, "last slot": 1<<64 - 1, "in between": 1<<63 + 5<<52} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			small, err := newTable(filepath.Join(t.TempDir(), "catalog"), firstSlots)
			if err != nil {
				t.Fatal(err)
			}
			larger, err := newTable(filepath.Join(t.TempDir(), "catalog"), growth*firstSlots)
			if err != nil {
				t.Fatal(err)
			}
			is := func(want int64) func(int64) (bool, error) {
				return func(place int64) (bool, error) { return place == want, nil }
			}
			const orders = 20
			for place := range int64(orders) {
				s, err := small.find(hash, is(place))
				if err != nil || s.after != 0 {
					t.Fatalf("order %d before it is there: %+v, %v", place, s, err)
				}
				*s = slot{hash, uint64(place + 1)}
			}
			small.copyTo(&larger)
			for _, table := range []table{small, larger} {
				for place := range int64(orders) {
					if s, err := table.find(hash, is(place)); err != nil || s.after != uint64(place+1) {
						t.Errorf("order %d of %d slots: %+v, %v", place, len(table.slots), s, err)
					}
				}
				if err := table.remove(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A table that the disk has lost ends the audit, and not the service.
func TestATableThatCannotBeReadIsAnError(t *testing.T) {
	t.Parallel()
	c := openCatalog(t)
	c.mustPut(t, order{"A", 1, []byte("a")})
	if err := c.table.file.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if err := c.put([]order{{"B", 1, []byte("b")}}); err == nil {
		t.Error("an order is put into a table that is not there")
	}
	// Some orders of that batch may be replaced.
	if _, err := c.view(); !errors.Is(err, errHalfPut) {
		t.Errorf("a view after that: %v, want %v", err, errHalfPut)
	}
}
