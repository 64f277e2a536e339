package outbox

import (
	"encoding/binary"
	"errors"

	"ordersystem.dev/services/contract"
)

// encodeHeaders writes each key and value behind its length, as a varint. The length of a value is
// one too large, because 0 stands for no value: a dead letter has exactly the headers of its
// record.
func encodeHeaders(hs []contract.Header) []byte {
	b := make([]byte, 0, 48*len(hs))
	for _, h := range hs {
		b = binary.AppendUvarint(b, uint64(len(h.Key)))
		b = append(b, h.Key...)
		if h.Value == nil {
			b = append(b, 0)
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(h.Value))+1)
		b = append(b, h.Value...)
	}
	return b
}

var errHeaders = errors.New("the headers of an outbox row are damaged")

// decodeHeaders reads what encodeHeaders has written.
func decodeHeaders(b []byte) ([]contract.Header, error) {
	hs := make([]contract.Header, 0, 8)
	for len(b) > 0 {
		key, rest, err := cut(b, 0)
		if err != nil {
			return nil, err
		}
		value, rest, err := cut(rest, 1)
		if err != nil {
			return nil, err
		}
		hs, b = append(hs, contract.Header{Key: string(key), Value: value}), rest
	}
	return hs, nil
}

// cut returns the field at the start of b and the rest. The length before the field is larger than
// the field by bias. If it is below bias, there is no field: nil.
func cut(b []byte, bias uint64) (field, rest []byte, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 {
		return nil, nil, errHeaders
	}
	b = b[size:]
	if n < bias {
		return nil, b, nil
	}
	if n -= bias; n > uint64(len(b)) {
		return nil, nil, errHeaders
	}
	return b[:n:n], b[n:], nil
}
