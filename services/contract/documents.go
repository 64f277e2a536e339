package contract

import _ "embed"

// The documents that describe the two APIs and the events; the services serve theirs at
// /openapi.yaml and /asyncapi.yaml of the ops port.
var (
	//go:embed openapi-cart.yaml
	CartOpenAPI []byte
	//go:embed openapi-order.yaml
	OrderOpenAPI []byte
	//go:embed asyncapi.yaml
	AsyncAPI []byte
)
