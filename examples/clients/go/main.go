// A tour of dst-grpc: asks a server about a prompt and prints one JSON document. See ../README.md.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	dst "github.com/dst-grpc/dst-grpc/gen/go/dst/v1"
)

// Server has the services of one server; one connection carries them all.
type Server struct {
	health   health.HealthClient
	catalog  dst.CatalogServiceClient
	contexts dst.ContextServiceClient
	scalars  dst.DerivedScalarServiceClient
	causal   dst.CausalServiceClient
	graphs   dst.GraphServiceClient
}

// connect never fails for want of a server: the connection is made by the first call.
func connect(address, serviceConfig string) (Server, func() error) {
	security := grpc.WithInsecure() // plain text
	if authorities := os.Getenv("DST_CLIENT_CA"); authorities != "" {
		tls, err := credentials.NewClientTLSFromFile(authorities, "")
		check(err)
		security = grpc.WithTransportCredentials(tls)
	}
	conn, err := grpc.Dial(address, security, grpc.WithDefaultServiceConfig(serviceConfig))
	check(err)
	return Server{
		health:   health.NewHealthClient(conn),
		catalog:  dst.NewCatalogServiceClient(conn),
		contexts: dst.NewContextServiceClient(conn),
		scalars:  dst.NewDerivedScalarServiceClient(conn),
		causal:   dst.NewCausalServiceClient(conn),
		graphs:   dst.NewGraphServiceClient(conn),
	}, conn.Close
}

// Document is what the tour prints, in the order in which it is made.
type Document struct {
	Health        string                `json:"health"`
	Models        []Model               `json:"models"`
	Types         Types                 `json:"types"`
	Tokens        Tokens                `json:"tokens"`
	Unicode       Tokens                `json:"unicode"`
	Resolve       Loading               `json:"resolve"`
	ResolveStream map[string]Resolution `json:"resolve_stream"`
	Derive        map[string]Summary    `json:"derive"`
	DeriveStream  map[string]Prediction `json:"derive_stream"`
	Explain       Explanation           `json:"explain"`
	Patch         Patched               `json:"patch"`
	Graph         Graph                 `json:"graph"`
	Deadline      ErrorReport           `json:"deadline"`
	Cancel        map[string]uint32     `json:"cancel"`
	Rejected      ErrorReport           `json:"rejected"`
	Retry         map[string]string     `json:"retry"`
}

func tour(ctx context.Context, server, refusing Server, inputs Inputs) Document {
	// Of every call made with this context: a proxy in front of several servers chooses by it.
	ctx = metadata.AppendToOutgoingContext(ctx, "dst-model", inputs.Model)
	if token := os.Getenv("DST_CLIENT_TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	var d Document
	d.Health = checkHealth(ctx, server)
	d.Models = listModels(ctx, server)
	d.Types = listTypes(ctx, server)
	d.Tokens = tokenize(ctx, server, inputs.Model, inputs.Prompt)
	d.Unicode = tokenize(ctx, server, inputs.Model, inputs.Unicode)
	d.Resolve = resolve(ctx, server, inputs.sparse())
	d.ResolveStream = resolveStream(ctx, server, inputs.dense(), inputs.sparse(), inputs.wrong())
	d.Derive = map[string]Summary{}
	for _, request := range []*dst.DeriveRequest{
		inputs.dense(),
		inputs.sparse(),
		inputs.half("float16", dst.TensorElementType_TENSOR_ELEMENT_TYPE_FLOAT16),
		inputs.half("bfloat16", dst.TensorElementType_TENSOR_ELEMENT_TYPE_BFLOAT16),
	} {
		answer, err := derive(ctx, server, request)
		check(err)
		d.Derive[request.RequestId] = summarize(answer)
	}
	d.DeriveStream = deriveStream(ctx, server, inputs.prefixes(d.Tokens.TokenIDs))
	d.Explain = explain(ctx, server, inputs.explain())
	d.Patch = patch(ctx, server, inputs.patch(d.Tokens.TokenIDs))
	d.Graph = graph(ctx, server, inputs.graph())
	d.Deadline = missDeadline(ctx, server)
	d.Cancel = map[string]uint32{"pins": cancelDerive(ctx, server, inputs.large())}
	_, err := derive(ctx, server, inputs.rejected())
	d.Rejected = report(err)
	d.Retry = map[string]string{"text": detokenize(ctx, refusing, inputs.Model, d.Tokens.TokenIDs)}
	return d
}

func main() {
	log.SetFlags(0)
	if len(os.Args) == 3 && os.Args[1] == "conformance" {
		judgeAll(os.Args[2])
		return
	}
	if len(os.Args) != 4 {
		log.Fatal("usage: tour ADDRESS TOUR_FILE RETRY_ADDRESS, or tour conformance VECTORS_FILE")
	}
	var inputs Inputs
	text, err := os.ReadFile(os.Args[2])
	check(err)
	check(json.Unmarshal(text, &inputs))
	serviceConfig, err := os.ReadFile("../service_config.json")
	check(err)

	server, closeServer := connect(os.Args[1], string(serviceConfig))
	defer closeServer()
	refusing, closeRefusing := connect(os.Args[3], string(serviceConfig))
	defer closeRefusing()

	document, err := json.MarshalIndent(tour(context.Background(), server, refusing, inputs), "", "  ")
	check(err)
	fmt.Println(string(document))
}

// check ends the program at an error that the tour does not expect.
func check(err error) {
	if err != nil {
		log.Fatalf("%v: %+v", err, report(err))
	}
}
