#include "worker/service/plan_codec.h"

#include <gmock/gmock.h>
#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <string>

namespace weir::worker {
namespace {

using testing::HasSubstr;

const PlanLimits kLimits = LimitsFor(2, 8, 1000, 50);

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// Draws every field of plans and results from its whole range.
class Drawer {
 public:
  explicit Drawer(uint64_t seed) : random_(seed) {}

  StepPlan Plan() {
    StepPlan plan{.step_id = random_(), .epoch = random_()};
    for (uint64_t n = random_() % 9; n > 0; --n) plan.work.push_back(Work());
    for (uint64_t n = random_() % 5; n > 0; --n) plan.released.push_back({Int(), Int()});
    return plan;
  }

  StepResult Result() {
    StepResult result{.step_id = random_(), .epoch = random_(), .plan_hash = random_()};
    for (uint64_t n = random_() % 9; n > 0; --n) result.sequences.push_back(Sequence());
    for (uint64_t n = random_() % 9; n > 0; --n) result.expert_loads.push_back(static_cast<int64_t>(random_() >> 1));
    result.timings = {.total_us = Int(), .communication_us = Int(), .sampling_us = Int()};
    return result;
  }

 private:
  int32_t Int() {
    switch (random_() % 4) {
      case 0:
        return 0;
      case 1:
        return std::numeric_limits<int32_t>::max();
      default:
        return static_cast<int32_t>(random_() >> 33);
    }
  }
  float Float() {
    switch (random_() % 5) {
      case 0:
        return 0.0f;
      case 1:
        return -std::numeric_limits<float>::infinity();
      case 2:
        return 1.0f;
      default:
        return static_cast<float>(static_cast<double>(random_()) / 1e18 - 9);
    }
  }
  bool Bool() { return random_() % 2 == 0; }
  std::vector<int32_t> Ints(size_t max) {
    std::vector<int32_t> result(random_() % (max + 1));
    for (int32_t& value : result) value = Int();
    return result;
  }
  std::vector<std::pair<int32_t, float>> Pairs(size_t max) {
    std::vector<std::pair<int32_t, float>> result(random_() % (max + 1));
    for (auto& [token, value] : result) {
      token = Int();
      value = Float();
    }
    return result;
  }

  SequenceWork Work() {
    SequenceWork work;
    work.slot = Int();
    work.dp_rank = Int();
    work.has_setup = Bool();
    if (work.has_setup) work.setup = Setup();
    work.first_position = Int();
    work.num_tokens = Int();
    work.token_ids = Ints(20);
    work.first_new_block = Int();
    work.new_block_ids = Ints(20);
    work.samples = Bool();
    work.reports_prompt_logprobs = Bool();
    return work;
  }
  SequenceSetup Setup() {
    return {.request_id = random_(),
            .seed = random_(),
            .num_prompt_tokens = Int(),
            .token_ids = Ints(30),
            .sampling = {.temperature = Float(),
                         .top_k = Int(),
                         .top_p = Float(),
                         .min_p = Float(),
                         .repetition_penalty = Float(),
                         .presence_penalty = Float(),
                         .frequency_penalty = Float(),
                         .logit_bias = Pairs(5),
                         .num_top_logprobs = Int(),
                         .wants_logprob = Bool()}};
  }
  kernels::SampleOutput Output() {
    return {.token = Bool() ? Int() : -1, .is_finite = Bool(), .logprob = Float(), .top_logprobs = Pairs(20)};
  }
  SequenceResult Sequence() {
    SequenceResult sequence{.slot = Int(), .dp_rank = Int()};
    sequence.has_sampled = Bool();
    if (sequence.has_sampled) sequence.sampled = Output();
    for (uint64_t n = random_() % 4; n > 0; --n) sequence.prompt_logprobs.push_back(Output());
    if (Bool()) sequence.error = "slot 9 does not exist";
    return sequence;
  }

  std::mt19937_64 random_;
};

void ExpectEqual(const kernels::SamplingParams& a, const kernels::SamplingParams& b) {
  EXPECT_EQ(a.temperature, b.temperature);
  EXPECT_EQ(a.top_k, b.top_k);
  EXPECT_EQ(a.top_p, b.top_p);
  EXPECT_EQ(a.min_p, b.min_p);
  EXPECT_EQ(a.repetition_penalty, b.repetition_penalty);
  EXPECT_EQ(a.presence_penalty, b.presence_penalty);
  EXPECT_EQ(a.frequency_penalty, b.frequency_penalty);
  EXPECT_EQ(a.logit_bias, b.logit_bias);
  EXPECT_EQ(a.num_top_logprobs, b.num_top_logprobs);
  EXPECT_EQ(a.wants_logprob, b.wants_logprob);
}

void ExpectEqual(const SequenceWork& a, const SequenceWork& b) {
  EXPECT_EQ(a.slot, b.slot);
  EXPECT_EQ(a.dp_rank, b.dp_rank);
  EXPECT_EQ(a.has_setup, b.has_setup);
  EXPECT_EQ(a.setup.request_id, b.setup.request_id);
  EXPECT_EQ(a.setup.seed, b.setup.seed);
  EXPECT_EQ(a.setup.num_prompt_tokens, b.setup.num_prompt_tokens);
  EXPECT_EQ(a.setup.token_ids, b.setup.token_ids);
  ExpectEqual(a.setup.sampling, b.setup.sampling);
  EXPECT_EQ(a.first_position, b.first_position);
  EXPECT_EQ(a.num_tokens, b.num_tokens);
  EXPECT_EQ(a.token_ids, b.token_ids);
  EXPECT_EQ(a.first_new_block, b.first_new_block);
  EXPECT_EQ(a.new_block_ids, b.new_block_ids);
  EXPECT_EQ(a.samples, b.samples);
  EXPECT_EQ(a.reports_prompt_logprobs, b.reports_prompt_logprobs);
}

void ExpectEqual(const kernels::SampleOutput& a, const kernels::SampleOutput& b) {
  EXPECT_EQ(a.token, b.token);
  EXPECT_EQ(a.is_finite, b.is_finite);
  EXPECT_EQ(a.logprob, b.logprob);
  EXPECT_EQ(a.top_logprobs, b.top_logprobs);
}

TEST(PlanCodec, PlansComeBackAsTheyWere) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    const StepPlan plan = Drawer(seed).Plan();
    v1::StepPlan message;
    EncodePlan(plan, message);
    v1::StepPlan received;
    ASSERT_TRUE(received.ParseFromString(message.SerializeAsString()));
    const auto decoded = DecodePlan(received, kLimits);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(decoded->step_id, plan.step_id);
    EXPECT_EQ(decoded->epoch, plan.epoch);
    ASSERT_EQ(decoded->work.size(), plan.work.size());
    for (size_t i = 0; i < plan.work.size(); ++i) ExpectEqual(decoded->work[i], plan.work[i]);
    ASSERT_EQ(decoded->released.size(), plan.released.size());
    for (size_t i = 0; i < plan.released.size(); ++i) {
      EXPECT_EQ(decoded->released[i].dp_rank, plan.released[i].dp_rank);
      EXPECT_EQ(decoded->released[i].slot, plan.released[i].slot);
    }
  }
}

TEST(PlanCodec, ResultsComeBackAsTheyWere) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    const StepResult result = Drawer(seed).Result();
    v1::StepResult message;
    EncodeResult(result, message);
    v1::StepResult received;
    ASSERT_TRUE(received.ParseFromString(message.SerializeAsString()));
    const auto decoded = DecodeResult(received, 16, 16);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(decoded->step_id, result.step_id);
    EXPECT_EQ(decoded->epoch, result.epoch);
    EXPECT_EQ(decoded->plan_hash, result.plan_hash);
    EXPECT_EQ(decoded->expert_loads, result.expert_loads);
    EXPECT_EQ(decoded->timings.total_us, result.timings.total_us);
    EXPECT_EQ(decoded->timings.communication_us, result.timings.communication_us);
    EXPECT_EQ(decoded->timings.sampling_us, result.timings.sampling_us);
    ASSERT_EQ(decoded->sequences.size(), result.sequences.size());
    for (size_t i = 0; i < result.sequences.size(); ++i) {
      const SequenceResult& a = decoded->sequences[i];
      const SequenceResult& b = result.sequences[i];
      EXPECT_EQ(a.slot, b.slot);
      EXPECT_EQ(a.dp_rank, b.dp_rank);
      EXPECT_EQ(a.has_sampled, b.has_sampled);
      ExpectEqual(a.sampled, b.sampled);
      EXPECT_EQ(a.error, b.error);
      ASSERT_EQ(a.prompt_logprobs.size(), b.prompt_logprobs.size());
      for (size_t k = 0; k < b.prompt_logprobs.size(); ++k) ExpectEqual(a.prompt_logprobs[k], b.prompt_logprobs[k]);
    }
  }
}

TEST(PlanCodec, AbsentSamplingParametersAreNeutral) {
  v1::StepPlan message;
  message.add_work()->mutable_setup();
  const auto plan = DecodePlan(message, kLimits);
  ASSERT_TRUE(plan.ok());
  ExpectEqual(plan->work[0].setup.sampling, kernels::SamplingParams());
}

TEST(PlanCodec, EveryBoundIsKept) {
  const auto complaint = [](const auto& change) {
    v1::StepPlan message;
    v1::SequenceWork* work = message.add_work();
    change(message, *work);
    const absl::Status status = DecodePlan(message, kLimits).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return Message(status);
  };
  constexpr uint32_t kTooLarge = 0x80000000u;
  using Plan = v1::StepPlan;
  using Work = v1::SequenceWork;
  EXPECT_THAT(complaint([](Plan&, Work& w) { w.set_slot(kTooLarge); }), HasSubstr("work[0].slot is 2147483648"));
  EXPECT_THAT(complaint([](Plan&, Work& w) { w.set_dp_rank(kTooLarge); }), HasSubstr("dp_rank"));
  EXPECT_THAT(complaint([](Plan&, Work& w) { w.set_first_position(kTooLarge); }), HasSubstr("first_position"));
  EXPECT_THAT(complaint([](Plan&, Work& w) { w.set_num_tokens(kTooLarge); }), HasSubstr("num_tokens"));
  EXPECT_THAT(complaint([](Plan&, Work& w) { w.set_first_new_block(kTooLarge); }), HasSubstr("first_new_block"));
  EXPECT_THAT(complaint([](Plan&, Work& w) { w.add_token_ids(kTooLarge); }), HasSubstr("token_ids"));
  EXPECT_THAT(complaint([](Plan&, Work& w) { w.add_new_block_ids(kTooLarge); }), HasSubstr("new_block_ids"));
  EXPECT_THAT(complaint([](Plan&, Work& w) { w.mutable_setup()->set_num_prompt_tokens(kTooLarge); }),
              HasSubstr("setup.num_prompt_tokens"));
  EXPECT_THAT(complaint([](Plan&, Work& w) { w.mutable_setup()->mutable_sampling()->set_top_k(kTooLarge); }),
              HasSubstr("top_k"));
  EXPECT_THAT(complaint([](Plan& p, Work&) { p.add_released()->set_slot(kTooLarge); }), HasSubstr("released.slot"));
  EXPECT_THAT(complaint([](Plan& p, Work&) {
                for (int i = 0; i < 16; ++i) p.add_work();
              }),
              HasSubstr("work has 17 entries; at most 16"));
  EXPECT_THAT(complaint([](Plan& p, Work&) {
                for (int i = 0; i < 17; ++i) p.add_released();
              }),
              HasSubstr("released has 17 entries"));
  EXPECT_THAT(complaint([](Plan&, Work& w) {
                for (int i = 0; i < 1001; ++i) w.add_token_ids(1);
              }),
              HasSubstr("token_ids has 1001 entries"));
  EXPECT_THAT(complaint([](Plan&, Work& w) {
                for (int i = 0; i < 51; ++i) w.add_new_block_ids(1);
              }),
              HasSubstr("new_block_ids has 51 entries"));
  EXPECT_THAT(complaint([](Plan&, Work& w) {
                for (int i = 0; i < 10001; ++i) w.mutable_setup()->mutable_sampling()->add_logit_bias();
              }),
              HasSubstr("logit_bias has 10001 entries"));
}

TEST(PlanCodec, ResultsBeyondWhatWasAskedAreRefused) {
  v1::StepResult message;
  for (int i = 0; i < 3; ++i) message.add_sequences();
  EXPECT_TRUE(DecodeResult(message, 3, 0).ok());
  EXPECT_THAT(Message(DecodeResult(message, 2, 0).status()), HasSubstr("sequences has 3 entries"));
  message.mutable_sequences(1)->add_prompt_logprobs();
  EXPECT_THAT(Message(DecodeResult(message, 3, 0).status()), HasSubstr("sequences[1].prompt_logprobs"));
  EXPECT_TRUE(DecodeResult(message, 3, 1).ok());
  for (int i = 0; i < 21; ++i) message.mutable_sequences(2)->mutable_sampled()->add_top();
  EXPECT_THAT(Message(DecodeResult(message, 3, 1).status()), HasSubstr("top has 21 entries"));
}

TEST(PlanCodec, AnyChangedByteIsSurvived) {
  google::protobuf::SetLogHandler(nullptr);  // it would tell of every text that is no longer UTF-8
  std::mt19937 random(5);
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    v1::StepPlan message;
    EncodePlan(Drawer(seed).Plan(), message);
    std::string bytes = message.SerializeAsString();
    for (int i = 0; i < 4 && !bytes.empty(); ++i) bytes[random() % bytes.size()] = static_cast<char>(random());
    if (message.ParseFromString(bytes)) (void)DecodePlan(message, kLimits);
    v1::StepResult result;
    EncodeResult(Drawer(seed).Result(), result);
    bytes = result.SerializeAsString();
    for (int i = 0; i < 4 && !bytes.empty(); ++i) bytes[random() % bytes.size()] = static_cast<char>(random());
    if (result.ParseFromString(bytes)) (void)DecodeResult(result, 16, 16);
  }
}

}  // namespace
}  // namespace weir::worker
