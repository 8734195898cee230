// What numbers are called, and how pieces of a message become one.

import { type DescEnum, type DescMessage, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";

/** The name of an enum's member as the proto writes it, e.g. "PASS_TYPE_FORWARD". */
export function nameOf(schema: DescEnum, number: number): string {
  return schema.value[number]?.name ?? String(number);
}

/** The bits of a number in hexadecimal: as a float32, or as the double that it is. */
export function bits(value: number, width: 32 | 64 = 32): string {
  const view = new DataView(new ArrayBuffer(8));
  if (width === 32) view.setFloat32(4, value);
  else view.setFloat64(0, value);
  return view.getBigUint64(0).toString(16).padStart(width / 4, "0");
}

/** Two pieces of a message as one: lists are joined. Messages in a row are one message, by the rules of protobuf. */
export function joined<Desc extends DescMessage>(schema: Desc, first: MessageShape<Desc>, second: MessageShape<Desc>) {
  return fromBinary(schema, Buffer.concat([toBinary(schema, first), toBinary(schema, second)]));
}
