package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/inventory"
)

// difference is a way in which an order is not the same everywhere.
type difference string

// The differences.
const (
	// notInTopics: the topics lack the newest version.
	notInTopics difference = "not-in-topics"
	// notInCart: Cart lacks the newest version.
	notInCart difference = "not-in-cart"
	// notInOrder: Order's view lacks the newest version.
	notInOrder difference = "not-in-order"
	// overtaken: behind the newest version, the topic has an older one or a record that is no order.
	// Compaction keeps that one.
	overtaken difference = "overtaken"
	// otherInCart and otherInOrder: the version is the same as in the topics, and the contents are not.
	otherInCart  difference = "other-contents-in-cart"
	otherInOrder difference = "other-contents-in-order"
)

// held is a version of an order. Version 0 is none.
type held struct {
	version int64
	sum     inventory.Sum
}

// state is what is known of an order. All services go on meanwhile, so each part is of a time of its own.
type state struct {
	// cart is what Cart had before the topics were read, or after that if it lacked the newest version.
	// published is the version that it had before, which it had published.
	cart      held
	published int64
	// topics is the newest version in the topics, and applied what it was before the view was read, which
	// the view had applied.
	topics  held
	applied int64
	// order is what Order's view had.
	order held
	// created and updated are the versions of the last record in each topic; 0 is a record that is no order.
	created, updated int64
}

// newest returns the highest version of the topics and the view.
func (s *state) newest() int64 { return max(s.topics.version, s.order.version) }

// differences returns how the order differs.
func (s *state) differences() (all []difference) {
	add := func(d difference, is bool) {
		if is {
			all = append(all, d)
		}
	}
	last := s.updated
	if s.topics.version == 1 {
		last = s.created
	}
	add(notInTopics, s.topics.version < max(s.published, s.order.version))
	add(notInCart, s.cart.version < s.newest())
	add(notInOrder, s.order.version < s.applied)
	add(overtaken, last < s.topics.version)
	add(otherInCart, s.cart.version == s.topics.version && s.cart.sum != s.topics.sum)
	add(otherInOrder, s.order.version == s.topics.version && s.order.sum != s.topics.sum)
	return all
}

// repairable reports whether all is well once Cart has published the order again.
func (s *state) repairable() bool {
	return s.cart.version > 0 && s.cart.version >= s.newest() &&
		!slices.ContainsFunc(s.differences(), func(d difference) bool { return d == otherInCart || d == otherInOrder })
}

// comparison is Cart's store, both topics and Order's view, order by order.
type comparison struct {
	states map[string]*state
	// unusable counts the records of the topics that are no orders.
	unusable int64
}

func (c *comparison) of(orderID string) *state {
	s := c.states[orderID]
	if s == nil {
		s = &state{}
		// The ID may be a part of a whole record, which would be kept with it.
		c.states[strings.Clone(orderID)] = s
	}
	return s
}

// add takes records of the topics.
func (c *comparison) add(records []broker.Record) {
	for i := range records {
		r := &records[i]
		if r.Fault != nil {
			c.unusable++
			continue
		}
		e, body, err := contract.DecodeRecord(r.Topic, r.Offset, r.Key, r.Value, r.Headers)
		if err != nil {
			c.unusable++
			// Longer keys are of no order.
			if len(r.Key) <= contract.MaxIDBytes {
				c.of(string(r.Key)).passed(r.Topic, 0)
			}
			continue
		}
		s := c.of(e.Order.OrderID)
		s.passed(r.Topic, e.Order.Version)
		// Of two records with the same version, readers keep the first.
		if e.Order.Version > s.topics.version {
			s.topics = held{e.Order.Version, inventory.SumOf(body)}
		}
	}
}

// passed takes the version of a record of the topic.
func (s *state) passed(topic string, version int64) {
	if contract.EventType(topic) == contract.TypeCreated {
		s.created = version
	} else {
		s.updated = version
	}
}

// compare compares the stores of the services, whose operations endpoints are at these addresses, with the
// topics. It returns the orders that differ. The services go on meanwhile, and nothing that they do counts as
// a difference:
//
//   - Cart's inventory says that Kafka has everything that is in it. The topics are read after that.
//   - Order's inventory has everything that was in the topics when it was asked for. The topics are read
//     again after that, from where they ended.
//   - The orders that Cart changed meanwhile are looked up once more.
func (k *kafka) compare(ctx context.Context, cartAddr, orderAddr string) (map[string]*state, error) {
	admin, err := broker.NewAdmin(k.cfg, k.log)
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	c := &comparison{states: make(map[string]*state)}
	progress := k.meter("Cart", "orders", 0)
	err = inventory.Read(ctx, cartAddr, nil, func(e inventory.Entry) {
		s := c.of(e.OrderID)
		s.cart, s.published = held{e.Version, e.Sum}, e.Version
		progress.add(1)
	})
	if err != nil {
		return nil, fmt.Errorf("read Cart's inventory: %w (-cart has the address of its operations port)", err)
	}
	end, err := k.read(ctx, admin, "topics", nil, contract.OrderTopics(), c.add)
	if err != nil {
		return nil, err
	}
	for _, s := range c.states {
		s.applied = s.topics.version
	}
	progress = k.meter("Order", "orders", int64(len(c.states)))
	err = inventory.Read(ctx, orderAddr, nil, func(e inventory.Entry) {
		c.of(e.OrderID).order = held{e.Version, e.Sum}
		progress.add(1)
	})
	if err != nil {
		return nil, fmt.Errorf("read Order's inventory: %w (-order has the address of its operations port)", err)
	}
	if _, err := k.read(ctx, admin, "topics, what came meanwhile", end, contract.OrderTopics(), c.add); err != nil {
		return nil, err
	}
	var behind []string
	for id, s := range c.states {
		if s.cart.version < s.newest() {
			behind = append(behind, id)
		}
	}
	progress = k.meter("Cart, what was changed meanwhile", "orders", int64(len(behind)))
	for ids := range slices.Chunk(behind, inventory.MostOrders) {
		err := inventory.Read(ctx, cartAddr, ids, func(e inventory.Entry) {
			c.of(e.OrderID).cart = held{e.Version, e.Sum}
		})
		if err != nil {
			return nil, fmt.Errorf("look up %d orders of Cart: %w", len(ids), err)
		}
		progress.add(len(ids))
	}
	compared := len(c.states)
	maps.DeleteFunc(c.states, func(_ string, s *state) bool { return len(s.differences()) == 0 })
	fmt.Fprintf(k.progress, "%d orders compared, %d differ; %d records of the topics are no orders\n",
		compared, len(c.states), c.unusable)
	return c.states, nil
}
