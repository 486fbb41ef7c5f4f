// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/longbench_sets.h"
#include "lib/core/error.h"

namespace million {

namespace {

using enum LongBenchMetric;

// hotpotqa, 2wikimqa and musique have one prompt.
constexpr std::string_view kPassages =
    "Answer the question based on the given passages. Only give me the answer and do not "
    "output any other words.\n\n"
    "The following are given passages.\n"
    "{context}\n\n"
    "Answer the question based on the given passages. Only give me the answer and do not "
    "output any other words.\n\n"
    "Question: {input}\n"
    "Answer:";

// name, kind, metric, tokens to generate, chat template, first line only, in LongBench-E, prompt
constexpr LongBenchSet kSets[] = {
    {"narrativeqa", "one document, English: stories and scripts", kTokenF1, 128, true, false, false,
     "You are given a story, which can be either a novel or a movie script, and a "
     "question. Answer the question asconcisely as you can, using a single phrase if "
     "possible. Do not provide any explanation.\n\n"
     "Story: {context}\n\n"
     "Now, answer the question based on the story asconcisely as you can, using a single "
     "phrase if possible. Do not provide any explanation.\n\n"
     "Question: {input}\n\n"
     "Answer:"},
    {"qasper", "one document, English: scientific articles", kTokenF1, 128, true, false, true,
     "You are given a scientific article and a question. Answer the question as concisely "
     "as you can, using a single phrase or sentence if possible. If the question cannot "
     "be answered based on the information in the article, write \"unanswerable\". If the "
     "question is a yes/no question, answer \"yes\", \"no\", or \"unanswerable\". Do not "
     "provide any explanation.\n\n"
     "Article: {context}\n\n"
     " Answer the question based on the above article as concisely as you can, using a "
     "single phrase or sentence if possible. If the question cannot be answered based on "
     "the information in the article, write \"unanswerable\". If the question is a yes/no "
     "question, answer \"yes\", \"no\", or \"unanswerable\". Do not provide any "
     "explanation.\n\n"
     "Question: {input}\n\n"
     "Answer:"},
    {"multifieldqa_en", "one document, English: articles of many fields", kTokenF1, 64, true, false,
     true,
     "Read the following text and answer briefly.\n\n"
     "{context}\n\n"
     "Now, answer the following question based on the above text, only give me the answer "
     "and do not output any other words.\n\n"
     "Question: {input}\n"
     "Answer:"},
    {"multifieldqa_zh", "one document, Chinese: articles of many fields", kTokenF1Chinese, 64, true,
     false, false,
     "阅读以下文字并用中文简短回答：\n\n"
     "{context}\n\n"
     "现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。\n\n"
     "问题：{input}\n"
     "回答："},
    {"hotpotqa", "several documents, English: Wikipedia", kTokenF1, 32, true, false, true,
     kPassages},
    {"2wikimqa", "several documents, English: Wikipedia", kTokenF1, 32, true, false, true,
     kPassages},
    {"musique", "several documents, English: Wikipedia, up to four steps", kTokenF1, 32, true,
     false, false, kPassages},
    {"dureader", "several documents, Chinese: web search", kRougeLChinese, 128, true, false, false,
     "请基于给定的文章回答下述问题。\n\n"
     "文章：{context}\n\n"
     "请基于上述文章回答下面的问题。\n\n"
     "问题：{input}\n"
     "回答："},
    {"gov_report", "summary, English: government reports", kRougeL, 512, true, false, true,
     "You are given a report by a government agency. Write a one-page summary of the "
     "report.\n\n"
     "Report:\n"
     "{context}\n\n"
     "Now, write a one-page summary of the report.\n\n"
     "Summary:"},
    {"qmsum", "summary, English: meetings, by a query", kRougeL, 512, true, false, false,
     "You are given a meeting transcript and a query containing a question or "
     "instruction. Answer the query in one or more sentences.\n\n"
     "Transcript:\n"
     "{context}\n\n"
     "Now, answer the query based on the above meeting transcript in one or more "
     "sentences.\n\n"
     "Query: {input}\n"
     "Answer:"},
    {"multi_news", "summary, English: news on one event", kRougeL, 512, true, false, true,
     "You are given several news passages. Write a one-page summary of all news. \n\n"
     "News:\n"
     "{context}\n\n"
     "Now, write a one-page summary of all the news.\n\n"
     "Summary:"},
    {"vcsum", "summary, Chinese: meetings", kRougeLChinese, 512, true, false, false,
     "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n"
     "会议记录：\n"
     "{context}\n\n"
     "会议总结："},
    {"trec", "few examples, English: type of a question", kClassification, 64, false, true, true,
     "Please determine the type of the question below. Here are some examples of "
     "questions.\n\n"
     "{context}\n"
     "{input}"},
    {"triviaqa", "few examples, English: trivia with a passage", kTokenF1, 32, false, true, true,
     "Answer the question based on the given passage. Only give me the answer and do not "
     "output any other words. The following are some examples.\n\n"
     "{context}\n\n"
     "{input}"},
    {"samsum", "few examples, English: summary of a dialogue", kRougeL, 128, false, true, true,
     "Summarize the dialogue into a few short sentences. The following are some examples."
     "\n\n"
     "{context}\n\n"
     "{input}"},
    {"lsht", "few examples, Chinese: class of a news item", kClassification, 64, false, true, false,
     "请判断给定新闻的类别，下面是一些例子。\n\n"
     "{context}\n"
     "{input}"},
    {"passage_count", "synthetic, English: number of different paragraphs", kCount, 32, true, false,
     true,
     "There are some paragraphs below sourced from Wikipedia. Some of them may be "
     "duplicates. Please carefully read these paragraphs and determine how many unique "
     "paragraphs there are after removing duplicates. In other words, how many "
     "non-repeating paragraphs are there in total?\n\n"
     "{context}\n\n"
     "Please enter the final count of unique paragraphs after removing duplicates. The "
     "output format should only contain the number, such as 1, 2, 3, and so on.\n\n"
     "The final answer is: "},
    {"passage_retrieval_en", "synthetic, English: paragraph of an abstract", kRetrieval, 32, true,
     false, true,
     "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine "
     "which paragraph the abstract is from.\n\n"
     "{context}\n\n"
     "The following is an abstract.\n\n"
     "{input}\n\n"
     "Please enter the number of the paragraph that the abstract is from. The answer "
     "format must be like \"Paragraph 1\", \"Paragraph 2\", etc.\n\n"
     "The answer is: "},
    {"passage_retrieval_zh", "synthetic, Chinese: paragraph of an abstract", kRetrievalChinese, 32,
     true, false, false,
     "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n"
     "{context}\n\n"
     "下面是一个摘要\n\n"
     "{input}\n\n"
     "请输入摘要所属段落的编号。答案格式必须是\"段落1\"，\"段落2\"等格式\n\n"
     "答案是："},
    {"lcc", "code: next line, Python, C#, Java", kCode, 64, false, false, true,
     "Please complete the code given below. \n"
     "{context}Next line of code:\n"},
    {"repobench-p", "code: next line from other files, Python, Java", kCode, 64, false, false, true,
     "Please complete the code given below. \n"
     "{context}{input}Next line of code:\n"},
};

}  // namespace

std::span<const LongBenchSet> longbench_sets() { return kSets; }

std::string fill_prompt(std::string_view prompt, std::string_view context, std::string_view input,
                        std::string_view where) {
  std::string out;
  out.reserve(prompt.size() + context.size() + input.size());
  for (std::size_t at = 0; at < prompt.size();) {
    const std::string_view rest = prompt.substr(at);
    const auto take = [&](std::string_view mark, std::string_view text) {
      if (rest.substr(0, mark.size()) != mark) return false;
      out += text;
      at += mark.size();
      return true;
    };
    if (take("{{", "{") || take("}}", "}") || take("{context}", context) || take("{input}", input))
      continue;
    MILLION_REQUIRE(rest[0] != '{' && rest[0] != '}', ErrorCode::kBadInput,
                    "{}: brace at byte {} of the prompt; known are {{context}} and {{input}}, and "
                    "a brace itself is written twice",
                    where, at + 1);
    out.push_back(rest[0]);
    ++at;
  }
  return out;
}

}  // namespace million
