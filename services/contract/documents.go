package contract

import _ "embed"

// The documents that describe the two APIs and the events, as YAML. A service serves its own at
// /openapi.yaml and /asyncapi.yaml of the ops port.
var (
	// CartOpenAPI describes the API of the Cart service.
	//
	//go:embed openapi-cart.yaml
	CartOpenAPI []byte

	// OrderOpenAPI describes the API of the Order service.
	//
	//go:embed openapi-order.yaml
	OrderOpenAPI []byte

	// AsyncAPI describes the topics and their records.
	//
	//go:embed asyncapi.yaml
	AsyncAPI []byte
)
