package contract

// Header keys of a dead letter, in addition to the headers of its record.
const (
	// HeaderLetterTopic, HeaderLetterPartition and HeaderLetterOffset say where the record was.
	HeaderLetterTopic     = "dlt-topic"
	HeaderLetterPartition = "dlt-partition"
	HeaderLetterOffset    = "dlt-offset"
	// HeaderLetterReason is a Reason, and HeaderLetterMessage explains it to a person.
	HeaderLetterReason  = "dlt-reason"
	HeaderLetterMessage = "dlt-message"
	// HeaderLetterTime is when Order has read the record.
	HeaderLetterTime = "dlt-time"
	// HeaderLetterCut has the size in bytes of a record that was too large for a letter. What is left of it
	// has no headers of its own.
	HeaderLetterCut = "dlt-cut"
)
