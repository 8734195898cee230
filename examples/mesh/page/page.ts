// Asks the server that the page came from, and colours each word of the prompt by its effect.

import { createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { LossFnName } from "./gen/dst/v1/component_pb.js";
import { DerivedScalarService } from "./gen/dst/v1/derived_scalar_service_pb.js";
import { DerivedScalarType } from "./gen/dst/v1/derived_scalar_type_pb.js";

const client = createClient(DerivedScalarService, createGrpcWebTransport({ baseUrl: location.origin }));
const form = document.querySelector("form")!;
const place = document.querySelector("#answer")!;

interface Effects {
  tokens: string[];
  values: Float32Array;
  loss: number | undefined;
}

async function ask(prompt: string, target: string, distractor: string): Promise<Effects> {
  const answer: Effects = { tokens: [], values: new Float32Array(), loss: undefined };
  let bytes = new Uint8Array();
  const request = {
    prompt: { prompt: { case: "text" as const, value: prompt } },
    lossFnConfig: { name: LossFnName.LOGIT_DIFF, targetTokens: [target], distractorTokens: [distractor] },
    derivedScalars: [{ dst: DerivedScalarType.TOKEN_ATTRIBUTION }],
  };
  // No model is named, so it is the default one; Envoy chooses a server by this.
  const headers = { "dst-model": "default" };
  for await (const { frames } of client.derive(request, { headers })) {
    for (const { frame } of frames) {
      if (frame.case === "header") {
        answer.tokens = frame.value.tokenStrings;
        answer.loss = frame.value.loss;
        bytes = new Uint8Array(Number(frame.value.tensors[0]?.byteLength ?? 0));
      } else if (frame.case === "chunk") {
        bytes.set(frame.value.data, Number(frame.value.offset));
      } else if (frame.case === "trailer") {
        // Elements are little-endian, as they are in the memory of every browser.
        answer.values = new Float32Array(bytes.buffer);
      }
    }
  }
  return answer;
}

function show({ tokens, values, loss }: Effects): void {
  const largest = Math.max(...values.map(Math.abs)) || 1;
  const words = tokens.map((token, i) => {
    const value = values[i] ?? 0;
    const word = document.createElement("span");
    word.textContent = token;
    word.title = value.toFixed(2);
    word.style.background = `hsl(${value > 0 ? 140 : 10} 80% ${96 - (45 * Math.abs(value)) / largest}%)`;
    return word;
  });
  place.replaceChildren(...words, ` (${loss?.toFixed(2) ?? "no loss"})`);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const field = (name: string) => String(new FormData(form).get(name));
  place.textContent = "...";
  ask(field("prompt"), field("target"), field("distractor")).then(show, (error: unknown) => {
    place.textContent = String(error);
  });
});
