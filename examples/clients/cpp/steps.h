// The steps of the tour: each makes its calls and gives its part of the document.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "assembler.h"
#include "errors.h"
#include "requests.h"
#include "server.h"

using Json = nlohmann::ordered_json;

// catalog.cc: what can be asked.
std::string check_health(Server& server);
Json list_models(Server& server);
Json list_types(Server& server);
dst::v1::TokenizeResponse tokenize(Server& server, const std::string& model, const std::string& text);
std::string detokenize(Server& server, const std::string& model, const std::vector<uint32_t>& token_ids);

// resolve.cc: what a request would cost before it is run.
Json resolve(Server& server, const dst::v1::DeriveRequest& request);
Json resolve_stream(Server& server, const std::vector<dst::v1::DeriveRequest>& requests);

// derive.cc: running requests.
Answer derive(Server& server, const dst::v1::DeriveRequest& request);
Json derive_stream(Server& server, const std::vector<dst::v1::DeriveRequest>& requests);
ErrorReport miss_deadline(Server& server);
uint32_t cancel_derive(Server& server, const dst::v1::DeriveRequest& request);

// explain.cc: why the model said one thing and not another.
Json explain(Server& server, const dst::v1::ExplainRequest& request);

// summary.cc: what is printed.
Json summarize(const Answer& answer);
Json axes(const google::protobuf::RepeatedPtrField<dst::v1::Axis>& axes);
Json to_json(const ErrorReport& report);
std::string bits(float value);
